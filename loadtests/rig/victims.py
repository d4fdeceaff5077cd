"""Store servers and the harm that can be done to them."""

from __future__ import annotations

import os
import shutil
import signal
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import psutil

from loadtests.rig.judge import workers
from loadtests.rig.postgres import PostgresServer
from loadtests.rig.redis import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service


class Victim(ABC):
    """A store server and the harm that can be done to it. It keeps what it has acknowledged through a crash."""

    def __init__(self, server: RedisServer | PostgresServer) -> None:
        self.server = server
        #: Its address, for the service.
        self.url = server.url
        #: Its TCP port, for a proxy.
        self.port = server.port

    def start(self) -> None:
        """Start it, or start it again on its data, and wait until it answers."""
        self.server.start()

    def kill(self) -> None:
        """End it as a power cut would end the process."""
        self.server.kill()

    def pause(self) -> None:
        """Stop it from doing anything; its connections stay open."""
        self.server.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        self.server.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Clean up."""
        self.server.stop()

    @abstractmethod
    def drop_connections(self) -> None:
        """Close every client's connection, whatever is under way."""

    @abstractmethod
    def wipe(self) -> None:
        """Lose all data, while running."""

    @abstractmethod
    def backup(self) -> None:
        """Keep a copy of the data as it is now."""

    @abstractmethod
    def restore(self) -> None:
        """Be replaced by the copy, as after a disaster."""

    @abstractmethod
    def proxied(self, proxy: Proxy) -> str:
        """Its address through a proxy."""


class RedisVictim(Victim):
    """Valkey with an append-only file that is flushed before every reply."""

    server: RedisServer

    def __init__(self, folder: Path) -> None:
        super().__init__(RedisServer(folder))
        self._copy = folder.with_name(f"{folder.name}-copy")

    def drop_connections(self) -> None:
        self.server.command("CLIENT", "KILL", "TYPE", "normal")

    def wipe(self) -> None:
        assert self.server.command("FLUSHALL") == "+OK"

    def backup(self) -> None:
        self.server.kill()
        shutil.copytree(self.server.folder, self._copy)
        self.server.start()

    def restore(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.folder)
        shutil.copytree(self._copy, self.server.folder)
        self.server.start()

    def proxied(self, proxy: Proxy) -> str:
        return f"redis://127.0.0.1:{proxy.port}/0"


class PostgresVictim(Victim):
    """PostgreSQL, which flushes its log before every commit."""

    server: PostgresServer

    def __init__(self, folder: Path) -> None:
        super().__init__(PostgresServer())
        self._copy = self.server.folder / "copy"

    def drop_connections(self) -> None:
        self.server.terminate_backends()

    def wipe(self) -> None:
        self.server.sql("DROP SCHEMA pythonricing CASCADE", "SELECT")

    def backup(self) -> None:
        self.server.kill()
        self.server.copy(self.server.data, self._copy)
        self.server.start()

    def restore(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.data)
        self.server.copy(self._copy, self.server.data)
        self.server.start()

    def proxied(self, proxy: Proxy) -> str:
        return f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"


#: The stores that the suite attacks.
VICTIMS: dict[str, Callable[[Path], Victim]] = {"redis": RedisVictim, "postgres": PostgresVictim}


def kill_a_worker(service: Service) -> None:
    """Kill one of the workers that have admitted claims."""
    victim = next(pid for pid in workers(service) if psutil.pid_exists(pid))
    os.kill(victim, signal.SIGKILL)
