"""Where the workers of one server meet: a folder with a slot for each, for what they have counted.

Workers die and others take their place, so files named by process would pile up. A slot is held by a lock that ends
with its process, however that ends; the next worker takes over the slot and counts on in its files.

The folder is private to this user: what another one puts where it could be found is neither opened nor removed.
"""

from __future__ import annotations

import atexit
import fcntl
import multiprocessing
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from loguru import logger

#: Names the folder, for prometheus-client and for the workers of a server that made it.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "pythonricing-workers-"

_VALUES = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_[0-9]+\.db")
_LOCK = re.compile(r"([0-9]+|alive)\.lock")
_HISTORY = re.compile(r"history_[0-9]+")


class Slot:
    """A place of this process in the server's folder; the server's supervisor holds one without a number."""

    def __init__(self, folder: Path, *, numbered: bool) -> None:
        self.folder = folder
        self._process = os.getpid()
        while True:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _private(folder):
                raise PermissionError(f"{folder} is not this user's alone")
            # Whoever is the last to leave removes the folder: it must not be this one that goes.
            alive = _lock(folder / "alive.lock", fcntl.LOCK_SH)
            if alive is not None and os.fstat(alive).st_nlink:
                self._alive = alive
                break
        self.number = -1
        while numbered:
            self.number += 1
            taken = _lock(folder / f"{self.number}.lock", fcntl.LOCK_EX)
            if taken is not None:
                self._taken = taken
                break

    def leave(self) -> None:
        """Give the place back; the last to leave removes the files."""
        if self._process != os.getpid():
            return  # a child that was forked
        self._process = 0
        if self.number >= 0:
            os.close(self._taken)
        fcntl.flock(self._alive, fcntl.LOCK_UN)
        _remove(self.folder)

    def dead(self) -> list[int]:
        """The slots whose workers have died."""
        found = []
        for path in _named(self.folder, _LOCK):
            if path.stem != "alive" and (lock := _lock(path, fcntl.LOCK_EX)) is not None:
                os.close(lock)
                found.append(int(path.stem))
        return found

    def values(self, kind: str = "") -> list[str]:
        """The files in which prometheus-client keeps what all slots have counted, or those of one kind of metric."""
        return [str(path) for path in _named(self.folder, _VALUES) if path.name.startswith(kind)]

    def history(self) -> Path:
        """The file for the history of this slot's workers."""
        return self.folder / f"history_{self.number}"

    def histories(self) -> list[Path]:
        """Those of all slots."""
        return _named(self.folder, _HISTORY)


_hosted: Slot | None = None


def host() -> None:
    """Make the folder in the server's supervisor, before any worker starts, and remove it at its end."""
    global _hosted
    if _hosted is not None or multiprocessing.parent_process() is not None:
        return
    with suppress(OSError):
        if given := os.environ.get(VARIABLE):
            folder = _given(given)
            _remove(folder)
        else:
            folder = _folder(os.getpid())
            for stale in _base().glob(f"{PREFIX}*"):
                _remove(stale)
        _hosted = Slot(folder, numbered=False)
        os.environ[VARIABLE] = str(_hosted.folder)
        atexit.register(_hosted.leave)


def join() -> Slot | None:
    """Take a slot as a worker. None: this process is the whole server, or no folder can be made."""
    parent = multiprocessing.parent_process()
    given = os.environ.get(VARIABLE)
    if not given and (parent is None or parent.pid is None):
        return None
    try:
        slot = Slot(_given(given) if given else _folder(parent.pid), numbered=True)  # type: ignore[union-attr, arg-type]
    except OSError as error:
        logger.warning("the workers have no folder to meet in, so each one's metrics are its own: {}", error)
        return None
    os.environ[VARIABLE] = str(slot.folder)
    return slot


def _base() -> Path:
    """Where temporary files may be, also in a container whose root can't be written."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime)
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/dev/shm")


def _folder(process: int) -> Path:
    """The folder of the server whose supervisor is `process`; on Linux no other process ever gets the same one."""
    started = ""
    with suppress(OSError):
        started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return _base() / f"{PREFIX}{os.geteuid()}-{process}-{started}"


def _given(folder: str) -> Path:
    """The folder that the operator names; if others may write to it, as to a mounted volume, one of ours in it."""
    path = Path(folder)
    return path if not path.exists() or _private(path) else path / f"{PREFIX}{os.geteuid()}"


def _private(folder: Path) -> bool:
    """Whether it is a folder that nobody else can put anything into."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    return [path for path in folder.iterdir() if names.fullmatch(path.name)]


def _lock(path: Path, kind: int) -> int | None:
    """Lock a file for as long as the returned descriptor is open. None: another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"{path} is not a file of this user's")
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a folder and the files in it that are known by name, unless some process holds a place in it."""
    with suppress(OSError):
        if not _private(folder) or (lock := _lock(folder / "alive.lock", fcntl.LOCK_EX)) is None:
            return
        try:
            for path in [each for names in (_VALUES, _HISTORY, _LOCK) for each in _named(folder, names)]:
                path.unlink()
            folder.rmdir()
        finally:
            os.close(lock)
