"""The shape of a log line: one JSON object, as Loguru's `serialize` has it, that reaches a pipe in one piece."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
import traceback
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from loguru import logger

from pythonricing.telemetry.writer import ATOMIC_WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loguru import Record

    from pythonricing.counting.model import Run

INFO = logger.level("INFO")
#: Seconds to which the times of claims' lines are exact.
TICK = 0.001
#: Counters whose lines are kept encoded.
MAX_TEMPLATES = 1024

_encode = msgspec.json.Encoder(enc_hook=repr).encode
_started = time.time()


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


def encode(record: Record) -> bytes:
    """Encode one of Loguru's records; what is too long for an atomic write loses the middle of its longest text."""
    exception = None
    if (thrown := record["exception"]) is not None:
        exception = {
            "type": thrown.type.__name__ if thrown.type else "",
            "value": str(thrown.value),
            "traceback": "".join(traceback.format_exception(*thrown)),
        }
    place = {
        "file": {"name": record["file"].name, "path": record["file"].path},
        "thread": {"id": record["thread"].id, "name": record["thread"].name},
        **{key: record[key] for key in ("function", "line", "module", "name")},
    }
    message, extra, stamp = record["message"], record["extra"], Stamp.of(record["time"])
    room = ATOMIC_WRITE
    while True:
        line = _shape(message, extra, record["level"], place, stamp, exception)
        if len(line) <= ATOMIC_WRITE or room < 32:
            return line
        room //= 2
        message = _clipped(message, room // 2)
        extra = {key: _clipped(str(value), room // 4) for key, value in extra.items()}
        if exception is not None:
            exception = {key: _clipped(text, room) for key, text in exception.items()}


def _shape(
    message: str, extra: dict[str, Any], level: Any, place: dict[str, Any], stamp: Stamp, exception: Any = None
) -> bytes:
    """One line in the shape of Loguru's `serialize`."""
    body = {
        "text": f"{stamp.clock} | {level.name:8} | {message}\n",
        "record": {
            "elapsed": {"repr": stamp.elapsed, "seconds": stamp.seconds},
            "exception": exception,
            "extra": extra,
            **place,
            "level": {"icon": level.icon, "name": level.name, "no": level.no},
            "message": message,
            "process": {"id": os.getpid(), "name": multiprocessing.current_process().name},
            "time": {"repr": stamp.time, "timestamp": stamp.timestamp},
        },
    }
    return _encode(body) + b"\n"


def _clipped(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room // 2]} […] {text[-room // 2 :]}"


class ClaimLines:
    """The lines of admitted claims: encoded once as a template, into which only the time and the number go.

    That costs 2 us a claim under load and 7 us for one alone; the whole line anew would be several times as much.
    """

    def __init__(self) -> None:
        self._templates: dict[tuple[str, int, int], bytes] = {}
        self._filled: dict[tuple[str, int, int], list[bytes]] = {}
        self._stamp: tuple[bytes, ...] = ()
        self._ticked = 0.0
        self._number = b"\0"  # no JSON has it

    def encode(
        self,
        now: float,
        name: str,
        limit: int,
        admitted: Sequence[tuple[int, int]],
        scattered: Mapping[tuple[str, int], tuple[Run, ...]],
    ) -> Iterator[bytes]:
        """The lines of claims that were admitted now (seconds since 1970): request_count and size of each.

        `scattered` holds the runs of those that own several, by the counter and the request_count.
        """
        if scattered:
            for number, size in admitted:
                if runs := scattered.get((name, number)):
                    self._look(now)
                    yield (self._template(name, limit, size, runs) % self._stamp).replace(self._number, b"%d" % number)
            admitted = [each for each in admitted if (name, each[0]) not in scattered]
        for size in {size for _, size in admitted}:
            parts = self._parts(now, name, limit, size)
            yield from ((b"%d" % number).join(parts) for number, claimed in admitted if claimed == size)

    def _parts(self, now: float, name: str, limit: int, size: int) -> list[bytes]:
        """The line of an admitted claim, split where its number goes.

        A counter's line is encoded once, and its times are filled in once for all claims within TICK seconds.
        """
        self._look(now)
        parts = self._filled.get((name, limit, size))
        if parts is None:
            template = self._templates.get((name, limit, size))
            if template is None:
                if len(self._templates) >= MAX_TEMPLATES:
                    self._templates.clear()
                template = self._templates[name, limit, size] = self._template(name, limit, size)
            parts = self._filled[name, limit, size] = (template % self._stamp).split(self._number)
        return parts

    def _look(self, now: float) -> None:
        """Say this time from now on, unless it is the one that is said already."""
        if not 0 <= now - self._ticked < TICK:
            self._ticked = now
            stamp = Stamp.of(datetime.fromtimestamp(now).astimezone())
            self._stamp = tuple(str(value).encode() for value in stamp)
            self._filled.clear()

    def _template(self, name: str, limit: int, size: int, numbers: tuple[Run, ...] = ()) -> bytes:
        # No name, path or time of ours has these digits: they mark where the numbers and times of a line go.
        clock, elapsed, seconds, time, timestamp, number = (str(random.randrange(10**17, 10**18)) for _ in range(6))
        extra: dict[str, Any] = {
            "counter": name,
            "n": size,
            "request_count": msgspec.Raw(number.encode()),
            "limit": limit,
        }
        if numbers:
            extra["numbers"] = numbers
        place = {
            "file": {"name": "lines.py", "path": __file__},
            "thread": {"id": threading.get_ident(), "name": threading.current_thread().name},
            "function": "encode",
            "line": 0,
            "module": "lines",
            "name": __name__,
        }
        stamp = Stamp(clock, elapsed, msgspec.Raw(seconds.encode()), time, msgspec.Raw(timestamp.encode()))
        line = _shape(f"{name}: {number} of {limit}", extra, INFO, place, stamp).replace(b"%", b"%%")
        for mark in (clock, elapsed, seconds, time, timestamp):
            line = line.replace(mark.encode(), b"%b")
        return line.replace(number.encode(), self._number)
