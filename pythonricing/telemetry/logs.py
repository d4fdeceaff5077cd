"""Logs: one JSON object a line on stdout, in the shape of Loguru's `serialize`, from every process of the service.

Loguru writes whatever is rare. The line of each admitted claim is encoded once a batch and then only gets its number.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import inspect
import logging
import multiprocessing
import os
import random
import select
import signal
import stat
import sys
import threading
import time
import traceback
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from loguru import logger

from pythonricing.counting.journal import Journal
from pythonricing.settings import Settings, SettingsError
from pythonricing.telemetry import workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loguru import Message

    from pythonricing.counting.model import Seen

#: Bytes that reach a pipe in one piece, whatever other workers write (POSIX guarantees at least 512; Linux has 4096).
ATOMIC_WRITE = 4096
#: Bytes of log that wait for a slow reader; what comes on top is dropped and counted.
MAX_BUFFERED = 1 << 20
#: Lines of claims are written once there are so many, or after so many seconds.
FULL, GATHER_SECONDS = 32, 0.01
#: Seconds to which the times of claims' lines are exact.
TICK = 0.001
#: Counters whose lines are kept encoded.
MAX_TEMPLATES = 1024
#: Seconds that the last lines get when the process ends.
FLUSH_SECONDS = 1.0

_encode = msgspec.json.Encoder(enc_hook=repr).encode


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


_writer: Writer | None = None
_started = time.time()
_INFO = logger.level("INFO")


def configure(level: str) -> Writer:
    """Send everything that this process logs, with Loguru or the standard library, to stdout as JSON. Idempotent."""
    global _writer
    if _writer is None:
        _writer = Writer(sys.stdout.fileno())
        atexit.register(close)
        logger.remove()
        logger.add(_sink, format="{message}", level=level, backtrace=False, diagnose=False)
    logging.root.handlers = [InterceptHandler()]
    logging.root.setLevel(logging.INFO)
    for name in ("_granian", "granian.access", "uvicorn", "uvicorn.error", "uvicorn.access"):
        server_logger = logging.getLogger(name)
        if server_logger.handlers:  # without one it is off, or passes its lines on as it is
            server_logger.handlers.clear()
            server_logger.propagate = True
    return _writer


def shows_info(level: str) -> bool:
    """Whether lines of level INFO are written at this level."""
    return logger.level(level).no <= _INFO.no


def close() -> None:
    """Write the last lines."""
    if _writer is not None:
        _writer.close()


def _forget_writer() -> None:
    """A forked child has no writer thread: it makes its own when it configures its logs."""
    global _writer
    _writer = None


os.register_at_fork(after_in_child=_forget_writer)


def _sink(message: Message) -> None:
    if _writer is not None:
        _writer.write([_line(dict(message.record))])


class Stamp(NamedTuple):
    """What a line says of its time, in the order in which it says it; seconds since the process began, or the epoch."""

    clock: str
    elapsed: str
    seconds: float | msgspec.Raw
    time: str
    timestamp: float | msgspec.Raw

    @classmethod
    def of(cls, when: datetime) -> Stamp:
        timestamp = when.timestamp()
        time = when.isoformat(" ", "microseconds")
        return cls(time[:26], str(timedelta(seconds=timestamp - _started)), timestamp - _started, time, timestamp)


def _line(record: dict[str, Any]) -> bytes:
    """Encode one of Loguru's records; what is too long for an atomic write loses the middle of its longest text."""
    exception = record["exception"]
    if exception is not None:
        exception = {
            "type": exception.type.__name__,
            "value": str(exception.value),
            "traceback": "".join(traceback.format_exception(*exception)),
        }
    message = record["message"]
    room = ATOMIC_WRITE
    while True:
        line = _shape(
            message,
            exception,
            record["extra"],
            {"name": record["file"].name, "path": record["file"].path},
            record["function"],
            record["level"],
            record["line"],
            record["module"],
            record["name"],
            {"id": record["thread"].id, "name": record["thread"].name},
            Stamp.of(record["time"]),
        )
        if len(line) <= ATOMIC_WRITE or room < 32:
            return line
        room //= 2
        message = _clipped(message, room // 2)
        record["extra"] = {key: _clipped(str(value), room // 4) for key, value in record["extra"].items()}
        if exception is not None:
            exception = {key: _clipped(text or "", room) for key, text in exception.items()}


def _shape(
    message: str,
    exception: dict[str, Any] | None,
    extra: dict[str, Any],
    file: dict[str, str],
    function: str,
    level: Any,
    line: int,
    module: str,
    name: str | None,
    thread: dict[str, Any],
    stamp: Stamp,
) -> bytes:
    """One line in the shape of Loguru's `serialize`."""
    body = {
        "text": f"{stamp.clock} | {level.name:8} | {message}\n",
        "record": {
            "elapsed": {"repr": stamp.elapsed, "seconds": stamp.seconds},
            "exception": exception,
            "extra": extra,
            "file": file,
            "function": function,
            "level": {"icon": level.icon, "name": level.name, "no": level.no},
            "line": line,
            "message": message,
            "module": module,
            "name": name,
            "process": {"id": os.getpid(), "name": multiprocessing.current_process().name},
            "thread": thread,
            "time": {"repr": stamp.time, "timestamp": stamp.timestamp},
        },
    }
    return _encode(body) + b"\n"


def _clipped(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room // 2]} […] {text[-room // 2 :]}"


class InterceptHandler(logging.Handler):
    """Hands the standard library's log records to Loguru, with the place they come from (Loguru's own recipe)."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        frame, depth = inspect.currentframe(), 0
        while frame and (depth == 0 or frame.f_code.co_filename == logging.__file__):
            frame, depth = frame.f_back, depth + 1
        logger.opt(depth=depth, exception=record.exc_info).log(level, "{}", record.getMessage())


def server_handler() -> logging.Handler:
    """The handler that the server's log configuration names: it makes the supervisor's own lines JSON.

    It is built in the supervisor before any worker starts. So a bad setting stops the server here, with one line and
    exit status 2; and what the application imports is loaded here, for the workers to share: they start at once, and
    the moment in which a new worker would miss a SIGTERM (Granian forks first and sets its handlers later) is short.
    """
    os.register_at_fork(after_in_child=_end_on_signals)
    try:
        configure(Settings.from_environ(os.environ).log_level)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    workers.host()
    for module in ("pythonricing.app", "prometheus_client.multiprocess", "uvloop"):
        importlib.import_module(module)
    return InterceptHandler()


def _end_on_signals() -> None:
    """Let SIGTERM and SIGINT end a forked worker until it has handlers of its own.

    Granian's supervisor leaves it a copy of its handlers, which take note of a signal and go on: a worker told to stop
    while it starts would serve for ever, and the supervisor wait for it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Throttle:
    """Adds up counts and passes them on at most once a second."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, count: int) -> None:
        self._count += count
        if self._timer is None:
            self.flush()
            self._timer = asyncio.get_running_loop().call_later(1.0, self._tick)

    def flush(self) -> None:
        """Pass on what has come together."""
        count, self._count = self._count, 0
        if count:
            self._say(count)

    def _tick(self) -> None:
        self._timer = None
        if self._count:
            self.add(0)


class ClaimLog(Journal):
    """The journal of claims as log lines."""

    def __init__(self, writer: Writer, *, requests: bool) -> None:
        self._writer = writer
        self._requests = requests
        self._admitted: list[tuple[float, str, int, Sequence[tuple[int, int]]]] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._templates: dict[tuple[str, int, int], bytes] = {}
        self._filled: dict[tuple[str, int, int], list[bytes]] = {}
        self._stamp: tuple[bytes, ...] = ()
        self._ticked = 0.0
        self._number = b"\0"  # no JSON has it
        self._refused = Throttle(lambda count: logger.bind(refused=count).warning("{} claims refused", count))
        self._unavailable = Throttle(
            lambda count: logger.bind(unavailable=count).warning("{} claims not answered by the store", count)
        )
        self._failed = Throttle(lambda count: logger.error("the store failed {} times: {}", count, self._error))
        self._error: Exception | None = None

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        if admitted and self._requests:
            # Made into lines only when they are written: many at once cost half.
            self._admitted.append((time.time(), name, limit, admitted))
            self._waiting += len(admitted)
            if self._waiting >= FULL:
                self._write()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._write)
        if refused:
            self._refused.add(refused)

    def refused(self, name: str, claims: int) -> None:
        self._refused.add(claims)

    def unavailable(self, name: str, claims: int) -> None:
        self._unavailable.add(claims)

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        for number, size in admitted:
            logger.bind(counter=name, orphaned=number, n=size).warning(
                "{}: {} of {} was admitted, but nobody waits for it any more", name, number, limit
            )

    def in_doubt(self, name: str, claims: int) -> None:
        logger.bind(counter=name, in_doubt=claims).error(
            "{}: whether {} claims were counted is not known; they were not admitted", name, claims
        )

    def lost(self, name: str, seen: Seen | None) -> None:
        logger.bind(counter=name, seen=seen and seen.count).critical(
            "{}: the store has lost data (count {} was seen); no claim is admitted until the counter is reset",
            name,
            seen.count if seen else "unknown",
        )

    def raised(self, name: str, before: int, after: int) -> None:
        logger.bind(counter=name, raised_from=before, raised_to=after).warning(
            "{}: the store had lost data and counted {}; it counts on from {}, which was seen", name, before, after
        )

    def found(self, name: str) -> None:
        logger.bind(counter=name).info("{}: an operator has set the counter; claims are admitted again", name)

    def failed(self, name: str, error: Exception) -> None:
        self._error = error
        self._failed.add(1)

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines: list[bytes] = []
        for now, name, limit, admitted in self._admitted:
            for size in {size for _, size in admitted}:
                parts = self._parts(now, name, limit, size)
                lines += [(b"%d" % number).join(parts) for number, claimed in admitted if claimed == size]
        self._admitted.clear()
        self._waiting = 0
        self._writer.write(lines)

    def close(self) -> None:
        """Say what has not been said yet."""
        self._write()
        for throttle in (self._refused, self._unavailable, self._failed):
            throttle.flush()

    def _parts(self, now: float, name: str, limit: int, size: int) -> list[bytes]:
        """The line of an admitted claim, split where its number goes.

        A counter's line is encoded once, and its times are filled in once for all claims within TICK seconds.
        """
        if not 0 <= now - self._ticked < TICK:
            self._ticked = now
            stamp = Stamp.of(datetime.fromtimestamp(now).astimezone())
            self._stamp = tuple(str(value).encode() for value in stamp)
            self._filled.clear()
        parts = self._filled.get((name, limit, size))
        if parts is None:
            template = self._templates.get((name, limit, size))
            if template is None:
                if len(self._templates) >= MAX_TEMPLATES:
                    self._templates.clear()
                template = self._templates[name, limit, size] = self._template(name, limit, size)
            parts = self._filled[name, limit, size] = (template % self._stamp).split(self._number)
        return parts

    def _template(self, name: str, limit: int, size: int) -> bytes:
        # No name, path or time of ours has these digits: they mark where the numbers and times of a line go.
        clock, elapsed, seconds, time, timestamp, number = (str(random.randrange(10**17, 10**18)) for _ in range(6))
        line = _shape(
            f"{name}: {number} of {limit}",
            None,
            {"counter": name, "n": size, "request_count": msgspec.Raw(number.encode()), "limit": limit},
            {"name": "logs.py", "path": __file__},
            "settled",
            _INFO,
            0,
            "logs",
            __name__,
            {"id": threading.get_ident(), "name": threading.current_thread().name},
            Stamp(clock, elapsed, msgspec.Raw(seconds.encode()), time, msgspec.Raw(timestamp.encode())),
        ).replace(b"%", b"%%")
        for mark in (clock, elapsed, seconds, time, timestamp):
            line = line.replace(mark.encode(), b"%b")
        return line.replace(number.encode(), self._number)
