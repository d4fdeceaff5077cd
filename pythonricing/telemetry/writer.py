"""Writes log lines to a file descriptor without ever waiting for whoever reads them."""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Bytes that reach a pipe in one piece, whatever other workers write (POSIX guarantees at least 512; Linux has 4096).
ATOMIC_WRITE = 4096
#: Bytes of log that wait for a slow reader; what comes on top is dropped and counted.
MAX_BUFFERED = 1 << 20
#: What the kernel says of a way to write that this kind of descriptor doesn't have.
NOT_POSSIBLE = (errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)
#: Seconds after which a write that failed is tried again.
RETRY_SECONDS = 0.5
#: Seconds that the last lines get when the process ends.
FLUSH_SECONDS = 1.0


class Writer:
    """Writes lines to a file descriptor and never waits for its reader.

    What the kernel takes at once is written at once (a thread for every line would cost four times as much, most of it
    spent on passing the interpreter's lock to and fro). The rest waits, within bounds, for a thread of its own, which
    tries again whatever goes wrong (a full disk, a file at its limit) unless nobody reads any more.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write_now = _immediate(fd)
        self._waiting: list[bytes] = []
        self._taken: list[bytes] = []
        self._size = 0
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._closing = threading.Event()
        self._idle = True
        self._ended = False
        self._error: OSError | None = None
        #: Lines dropped since the process began.
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, lines: Sequence[bytes]) -> None:
        """Write or queue lines, each ending in a newline and at most ATOMIC_WRITE long."""
        chunks = _chunks(lines)
        with self._lock:
            if self._idle and self._write_now is not None:
                try:
                    while chunks:
                        written = self._write_now(chunks[0])
                        chunks[:1] = [rest] if (rest := chunks[0][written:]) else []
                    return
                except OSError as error:  # the thread finds out what becomes of it
                    if error.errno in NOT_POSSIBLE:
                        self._write_now = None
            size = sum(map(len, chunks))
            if self._ended or self._size + size > MAX_BUFFERED:
                self.dropped += _lines(chunks)
                return
            self._idle = False
            self._waiting += chunks
            self._size += size
        self._filled.set()

    def close(self) -> None:
        """Write what is queued, for at most FLUSH_SECONDS."""
        self._closing.set()
        self._filled.set()
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        reported = 0
        while True:
            self._filled.wait()
            self._filled.clear()
            try:
                while self._take():
                    while self._taken:
                        self._put(self._taken[0])
                        del self._taken[0]
            except OSError:
                self._end()
                return
            if self.dropped > reported:
                dropped, reported = self.dropped - reported, self.dropped
                why = "the reader was too slow" if self._error is None else f"they could not be written: {self._error}"
                self._error = None
                logger.bind(dropped=dropped).warning("log lines dropped: {}", why)
            if self._closing.is_set() and self._idle:
                return

    def _take(self) -> bool:
        with self._lock:
            self._taken, self._waiting, self._size = self._waiting, [], 0
            self._idle = not self._taken
            return not self._idle

    def _put(self, chunk: bytes) -> None:
        """Write a chunk, however long it takes. Raises OSError if nobody reads, or if it fails at the end."""
        while chunk:
            last = self._closing.is_set()
            try:
                chunk = chunk[os.write(self._fd, chunk) :]
            except BlockingIOError:  # somebody made stdout non-blocking
                select.select([], [self._fd], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                if last:
                    raise
                self._error = error
                self._closing.wait(RETRY_SECONDS)

    def _end(self) -> None:
        """Count what nobody will read."""
        with self._lock:
            self._ended = True
            self.dropped += _lines(self._taken) + _lines(self._waiting)
            self._taken, self._waiting, self._size = [], [], 0


def _immediate(fd: int) -> Callable[[bytes], int] | None:
    """A way to write without waiting: none for terminals and sockets, nor for pipes before Linux 6.5 (pwritev2(2))."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return lambda chunk: os.write(fd, chunk)
    if stat.S_ISFIFO(mode) and (no_wait := getattr(os, "RWF_NOWAIT", None)) is not None:
        return lambda chunk: os.pwritev(fd, [chunk], -1, no_wait)
    return None


def _chunks(lines: Sequence[bytes]) -> list[bytes]:
    """Join lines into pieces of at most ATOMIC_WRITE bytes."""
    chunks: list[bytes] = []
    start = size = 0
    for index, line in enumerate(lines):
        if size + len(line) > ATOMIC_WRITE:
            chunks.append(b"".join(lines[start:index]))
            start, size = index, 0
        size += len(line)
    chunks.append(b"".join(lines[start:]))
    return chunks


def _lines(chunks: Sequence[bytes]) -> int:
    return sum(chunk.count(b"\n") for chunk in chunks)
