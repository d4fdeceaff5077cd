"""Servers with Sentinels, which promote a replica when the master fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        self._command = [program or redis_programs()[0], str(config), "--sentinel"]

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
