"""Writes log lines to a file descriptor without ever waiting for whoever reads them."""

from __future__ import annotations

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
#: Seconds that the last lines get when the process ends.
FLUSH_SECONDS = 1.0


class Writer:
    """Writes lines to a file descriptor and never waits for its reader.

    What the kernel takes at once is written at once (a thread for every line would cost four times as much, most of it
    spent on passing the interpreter's lock to and fro). The rest waits, within bounds, for a thread of its own.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write_now = _immediate(fd)
        self._waiting: list[bytes] = []
        self._size = 0
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._idle = True
        self._closing = False
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
                except BlockingIOError:
                    pass
                except OSError:  # not possible with this kind of descriptor, or nobody reads: the thread finds out
                    self._write_now = None
            size = sum(map(len, chunks))
            if self._size + size > MAX_BUFFERED:
                self.dropped += sum(chunk.count(b"\n") for chunk in chunks)
                return
            self._idle = False
            self._waiting += chunks
            self._size += size
        self._filled.set()

    def close(self) -> None:
        """Write what is queued, for at most FLUSH_SECONDS."""
        self._closing = True
        self._filled.set()
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        reported = 0
        while True:
            self._filled.wait()
            self._filled.clear()
            try:
                while chunks := self._take():
                    for chunk in chunks:
                        self._put(chunk)
            except OSError:
                return  # nobody will ever read again
            if self.dropped > reported:
                dropped, reported = self.dropped - reported, self.dropped
                logger.bind(dropped=dropped).warning("log lines dropped: the reader was too slow")
            if self._closing and self._idle:
                return

    def _take(self) -> list[bytes]:
        with self._lock:
            chunks, self._waiting, self._size = self._waiting, [], 0
            self._idle = not chunks
            return chunks

    def _put(self, chunk: bytes) -> None:
        while chunk:
            try:
                chunk = chunk[os.write(self._fd, chunk) :]
            except BlockingIOError:  # somebody made stdout non-blocking
                select.select([], [self._fd], [])


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
