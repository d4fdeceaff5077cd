"""The stores that contenders count in: each contender gets a fresh one of its own."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from loadtests.rig.processes import Unavailable
from loadtests.rig.redis import RedisServer
from loadtests.rig.waiting import wait_until
from loadtests.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCRIPTS = ("evalsha", "eval", "fcall")
#: What the lab itself asks, and what redis-py sends once for a connection.
NOT_COUNTED = ("info", "ping", "client", "hello", "config", "script")

#: As `pythonricing serve` runs it, but never rewriting its append-only file in the middle of a measurement.
VALKEY_OPTIONS = ("--auto-aof-rewrite-percentage", "0", "--loglevel", "warning")


class Valkey:
    """A Valkey (or Redis) on a port of 127.0.0.1 and on a Unix socket, its append-only file in `folder`.

    With a `replica`, that has to confirm every claim. Raises Unavailable.
    """

    def __init__(self, folder: Path, *, unix: bool = False, fsync: str = "everysec", replica: bool = False) -> None:
        options = (*VALKEY_OPTIONS, "--appendfsync", fsync)
        self.server = RedisServer(folder / "valkey", None, *options).start()
        self.url = f"unix://{self.server.socket}" if unix else self.server.url
        self.settings = {"PYTHONRICING_STORE_REPLICAS": "1"} if replica else {}
        self._replica: RedisServer | None = None
        if replica:
            of = ("--replicaof", f"127.0.0.1 {self.server.port}")
            self._replica = RedisServer(folder / "replica", None, *options, *of).start()
            wait_until(lambda: self.server.info("replication").get("slave0", "").find("online") > 0, "the replica")

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.server.pid, *([self._replica.pid] if self._replica else []))

    def version(self) -> str:
        info = self.server.info("server")
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    def usage(self) -> Usage:
        return Usage.of(*self.pids)

    def commands(self) -> int:
        """Commands that clients have sent: where a script does the work its calls, not the calls inside it."""
        calls: dict[str, int] = {}
        for name, text in self.server.info("commandstats").items():
            found = re.match(r"calls=(\d+)", text)
            calls[name.removeprefix("cmdstat_")] = int(found[1]) if found else 0
        scripts = sum(calls.get(name, 0) for name in SCRIPTS)
        return scripts or sum(count for name, count in calls.items() if not name.startswith(NOT_COUNTED))

    def forget(self) -> None:
        """All that is counted in it."""
        self.server.run("FLUSHALL")

    def stop(self) -> None:
        if self._replica is not None:
            self._replica.stop()
        self.server.stop()


class Postgres:
    """A PostgreSQL on a Unix socket. Raises Unavailable."""

    settings: Mapping[str, str] = {}

    def __init__(self) -> None:
        if find_spec("asyncpg") is None:
            raise Unavailable("no asyncpg: pip install asyncpg")
        from loadtests.rig.postgres import PostgresServer

        self.server = PostgresServer(shared_buffers="128MB").start()
        self.url = self.server.socket_url

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.server.pid,)

    def version(self) -> str:
        return "PostgreSQL " + str(self.server.sql("SHOW server_version")[0][0]).split()[0]

    def usage(self) -> Usage:
        return Usage.of(self.server.pid)

    def commands(self) -> None:
        """Not counted."""

    def forget(self) -> None:
        """No peer counts in it."""

    def stop(self) -> None:
        self.server.stop()
