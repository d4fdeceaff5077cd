"""The claim log: what happens to claims, as log lines."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from loguru import logger

from pythonricing.counting.journal import Journal
from pythonricing.counting.rules import total
from pythonricing.telemetry.lines import ClaimLines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.model import Resolution, Run, Seen
    from pythonricing.telemetry.writer import Writer

#: Lines of claims are written once there are so many, or so many seconds after the last ones.
FULL, GATHER_SECONDS = 32, 0.01
#: Seconds between two lines that add up what happens often.
THROTTLE_SECONDS = 1.0


class Throttle:
    """Adds up counts and passes them on at most once in THROTTLE_SECONDS."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, count: int) -> None:
        self._count += count
        if self._timer is None:
            self.flush()
            self._timer = asyncio.get_running_loop().call_later(THROTTLE_SECONDS, self._tick)

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
    """The journal of claims as log lines.

    `requests`: one for each admitted claim, which needs a writer. `summed`: none for any answer, because a summary
    tells of all workers'.
    """

    def __init__(self, writer: Writer | None, *, requests: bool, summed: bool = False) -> None:
        self._writer = writer
        self._requests = requests and not summed
        self._summed = summed
        self._admitted: list[tuple[float, str, int, Sequence[tuple[int, int]]]] = []
        #: By counter and last number, until they are written.
        self._scattered: dict[tuple[str, int], tuple[Run, ...]] = {}
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._written = 0.0  # when, on the loop's clock
        self._lines = ClaimLines()
        self._refused = Throttle(lambda count: logger.bind(refused=count).warning("{} claims refused", count))
        self._unavailable = Throttle(
            lambda count: logger.bind(unavailable=count).warning("{} claims not answered by the store", count)
        )
        self._failed = Throttle(lambda count: logger.error("the store failed {} times: {}", count, self._error))
        self._error: Exception | None = None

    def scattered(self, name: str, numbers: Sequence[tuple[Run, ...]]) -> None:
        if not self._requests:
            self._scattered.clear()
        self._scattered.update({(name, runs[-1][1]): runs for runs in numbers})

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        if admitted and self._requests:
            # Made into lines only when they are written: many at once cost half.
            self._admitted.append((time.time(), name, limit, admitted))
            self._waiting += len(admitted)
            if self._waiting >= FULL:
                self._write()
            elif self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_at(self._written + GATHER_SECONDS, self._write)
        if refused:
            self.refused(name, refused)

    def refused(self, name: str, claims: int) -> None:
        if not self._summed:
            self._refused.add(claims)

    def unavailable(self, name: str, claims: int) -> None:
        if not self._summed:
            self._unavailable.add(claims)

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        for number, size in admitted:
            runs = self._scattered.pop((name, number), None)
            more = {"numbers": runs} if runs else {}
            logger.bind(counter=name, orphaned=number, n=size, **more).warning(
                "{}: {} of {} was admitted, but nobody waits for it any more", name, number, limit
            )

    def resolved(self, name: str, limit: int, resolution: Resolution) -> None:
        if self._requests:
            told = {"confirmed": total(resolution.numbers), "released": resolution.size - total(resolution.numbers)}
            told = {outcome: numbers for outcome, numbers in told.items() if numbers}
            words = " and ".join(f"{numbers} {outcome}" for outcome, numbers in told.items())
            logger.bind(counter=name, numbers=resolution.numbers, **told).info("{}: of a hold, {}", name, words)

    def given_back(self, name: str, runs: Sequence[Run], numbers: int) -> None:
        logger.bind(counter=name, given_back=numbers, numbers=list(runs)).info(
            "{}: an operator gave {} numbers back", name, numbers
        )

    def expired(self, name: str, numbers: int) -> None:
        logger.bind(counter=name, expired=numbers).info(
            "{}: {} numbers went back as their holds expired", name, numbers
        )

    def in_doubt(self, name: str, claims: int) -> None:
        logger.bind(counter=name, in_doubt=claims).error(
            "{}: whether {} claims were counted is not known; they were not admitted", name, claims
        )

    def lost(self, name: str, seen: Seen | None) -> None:
        logger.bind(counter=name, seen=seen and seen.issued).critical(
            "{}: the store has lost data (count {} was seen); no claim is admitted until the counter is reset",
            name,
            seen.issued if seen else "unknown",
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
        self._written = asyncio.get_running_loop().time()
        lines = [line for batch in self._admitted for line in self._lines.encode(*batch, self._scattered)]
        self._admitted.clear()
        self._scattered.clear()
        self._waiting = 0
        if self._writer is not None:
            self._writer.write(lines)

    def close(self) -> None:
        """Say what has not been said yet."""
        self._write()
        for throttle in (self._refused, self._unavailable, self._failed):
            throttle.flush()
