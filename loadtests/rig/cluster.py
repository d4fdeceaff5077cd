"""A Redis or Valkey cluster that can be harmed, and whose slots can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtests.rig.redis import RedisServer
from loadtests.rig.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class ClusterServers:
    """A cluster whose masters share the slots evenly; `options` are the nodes'.

    `node_timeout` is how many seconds without an answer make a node look dead to another; a failover takes two to
    three times as long.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        masters: int = 3,
        replicas_each: int = 0,
        node_timeout: float = 1.5,
        program: str | None = None,
    ) -> None:
        self._masters = masters
        self.servers: list[RedisServer] = []
        self._buses: list[int] = []
        for number in range(masters * (1 + replicas_each)):
            self._buses.append(free_port())
            self.servers.append(
                RedisServer(
                    *(folder / f"node-{number}", program),
                    *("--cluster-enabled", "yes", "--cluster-port", str(self._buses[-1])),
                    *("--cluster-node-timeout", f"{node_timeout * 1000:.0f}", "--cluster-require-full-coverage", "no"),
                    *("--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"),
                    *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
                    *options,
                )
            )
        self.url = f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers[:2])}"

    def start(self) -> ClusterServers:
        """Start every node, make a cluster of them and wait until all agree that it is one."""
        for server in self.servers:
            server.start()
        bounds = [16384 * number // self._masters for number in range(self._masters + 1)]
        for number, server in enumerate(self.servers):
            server.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._masters:
                server.run("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for server, bus in zip(self.servers[1:], self._buses[1:], strict=True):
            self.servers[0].run("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_until(lambda: all(self._knows(server) for server in self.servers), "the nodes to meet")
        for number, server in enumerate(self.servers[self._masters :]):
            server.run("CLUSTER", "REPLICATE", self.id_of(self.servers[number % self._masters]))
        self.wait_until_whole()
        return self

    def id_of(self, server: RedisServer) -> str:
        name: str = server.run("CLUSTER", "MYID")
        return name

    def slot_of(self, counter: str) -> int:
        """The slot of a counter's keys."""
        slot: int = self._alive().run("CLUSTER", "KEYSLOT", f"pythonricing:{{{counter}}}")
        return slot

    def owner_of(self, slot: int) -> RedisServer:
        """The master that most of the nodes that answer take for the slot's owner."""
        return wait_until(lambda: self._owner_of(slot), f"an owner of slot {slot}")  # type: ignore[no-any-return]

    def replicas_of(self, master: RedisServer) -> list[RedisServer]:
        """The nodes that say that they follow this one."""
        followed = {server: server.info("replication").get("master_port") for server in self.servers}
        return [server for server, port in followed.items() if port == str(master.port)]

    def wait_for_failover(self, slot: int, old: RedisServer) -> RedisServer:
        """Wait until another node than `old` owns the slot and every node that answers knows it; returns it."""

        def moved() -> RedisServer | None:
            owners = self._owners(slot)
            return owners[0] if owners and len(set(owners)) == 1 and owners[0] is not old else None

        return wait_until(moved, f"another owner of slot {slot}")  # type: ignore[no-any-return]

    def migration(self, slot: int, to: RedisServer, keys: int = 10) -> Iterator[int]:
        """Move a slot in steps, `keys` at a time; after each step, yields how many keys have moved in all."""
        source = self.owner_of(slot)
        moved = 0
        to.run("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        yield moved
        while names := source.run("CLUSTER", "GETKEYSINSLOT", slot, keys):
            source.run("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)
            moved += len(names)
            yield moved
        masters = [server for server in self.servers if server.info("replication").get("role") == "master"]
        # The new owner first: otherwise the old one sends clients to a node that sends them back.
        for server in sorted(masters, key=lambda server: server is not to):
            server.run("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))
        yield moved

    def migrate(self, slot: int, to: RedisServer) -> int:
        """Move a slot and return how many keys it had."""
        *_, moved = self.migration(slot, to)
        return moved

    def wait_until_whole(self) -> None:
        """Wait until every node sees every slot served and every replica follows its master."""

        def whole() -> bool:
            links = [server.info("replication").get("master_link_status") for server in self.servers]
            return links.count("up") == len(self.servers) - self._masters and all(map(self._agrees, self.servers))

        wait_until(whole, "the cluster to be whole")

    def _alive(self) -> RedisServer:
        return next(server for server in self.servers if server.ask("PING") == "PONG")

    def _state(self, server: RedisServer) -> dict[str, str]:
        reply = server.ask("CLUSTER", "INFO")
        return dict(line.split(":", 1) for line in reply.split("\r\n") if line) if isinstance(reply, str) else {}

    def _knows(self, server: RedisServer) -> bool:
        return self._state(server).get("cluster_known_nodes") == str(len(self.servers))

    def _agrees(self, server: RedisServer) -> bool:
        state = self._state(server)
        if state.get("cluster_state") != "ok" or state.get("cluster_slots_ok") != "16384":
            return False
        slots = server.ask("CLUSTER", "SLOTS")
        nodes = {node[1] for _, _, *shard in slots for node in shard} if isinstance(slots, list) else set()
        return len(nodes) == len(self.servers)

    def _owners(self, slot: int) -> list[RedisServer]:
        """Whom each node that answers takes for a slot's owner."""
        servers = {server.port: server for server in self.servers}
        views = [server.ask("CLUSTER", "SLOTS") for server in self.servers]
        return [
            servers[master[1]]
            for view in views
            if isinstance(view, list)
            for first, last, master, *_ in view
            if first <= slot <= last
        ]

    def _owner_of(self, slot: int) -> RedisServer | None:
        owners = self._owners(slot)
        return max(owners, key=owners.count, default=None)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
