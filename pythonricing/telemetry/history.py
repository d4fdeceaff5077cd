"""What a server has admitted and refused in each of its last five minutes' seconds, all its workers together."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Seconds that are kept.
SPAN = 300
#: After so many seconds all workers have told what they counted: a second is told when it is over for so long.
SETTLED = 0.2
#: A second since 1970, and the claims admitted and refused in it.
Second = tuple[int, int, int]

_RECORD = struct.Struct("=qqq")
#: Records of a worker: more than are told, because the present second is not over and the one before not settled.
_RECORDS = SPAN + 2


class History:
    """The seconds of one worker: a ring in memory, and in the file that the server's other workers read it from."""

    def __init__(self, path: Path | None) -> None:
        """Go on with what the file has. Raises OSError if it can't be opened."""
        self._ring = bytearray(_RECORD.size * _RECORDS)
        self._file = -1
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            before = os.pread(self._file, len(self._ring), 0)
            self._ring[: len(before)] = before

    def add(self, admitted: int, refused: int) -> None:
        """Count claims in the present second."""
        now = int(time.time())
        at = now % _RECORDS * _RECORD.size
        second, *counted = _RECORD.unpack_from(self._ring, at)
        before = counted if second == now else (0, 0)
        _RECORD.pack_into(self._ring, at, now, before[0] + admitted, before[1] + refused)
        if self._file >= 0:
            with suppress(OSError):  # a full disk costs a line on a chart, and nothing else
                os.pwrite(self._file, self._ring[at : at + _RECORD.size], at)

    def seconds(self) -> list[Second]:
        """The seconds in which this worker has counted anything."""
        return _sum([self._ring])

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(paths: Iterable[Path]) -> list[Second]:
    """The seconds of all these files' workers, the oldest first; those without claims are left out."""
    rings = []
    for path in paths:
        with suppress(OSError):
            rings.append(path.read_bytes())
    return _sum(rings)


def _sum(rings: Iterable[bytes | bytearray]) -> list[Second]:
    now = int(time.time() - SETTLED)
    sums: dict[int, tuple[int, int]] = {}
    for ring in rings:
        for second, admitted, refused in _RECORD.iter_unpack(ring[: len(ring) - len(ring) % _RECORD.size]):
            if now - SPAN <= second < now:
                before = sums.get(second, (0, 0))
                sums[second] = before[0] + admitted, before[1] + refused
    return [(second, *sums[second]) for second in sorted(sums)]
