"""The numbers that a lane holds ahead of need, and how many it should take (see "Leases" in docs/protocol.md)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pythonricing.counting.model import LEASE_SECONDS
from pythonricing.counting.rules import LEASE_LEAST, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from pythonricing.counting.model import Run, Verdict

#: Claims a second of a worker that does nothing else. Where workers take turns on a CPU, each claims less on the whole,
#: but just as fast while it runs; so a lease is measured by this, and costs the store as little there.
BUSY = 8000.0
#: A lease is renewed when one part in so many is left of it.
LOW = 8
#: Seconds of claims from which the demand is told, at least; and those after which what was before has faded.
LOOK_SECONDS, FADE_SECONDS = 0.02, 0.1


class Span:
    """What is left of a run: the next number, the last one, and the moment from which it is not used any more."""

    __slots__ = ("last", "next", "until")

    def __init__(self, run: Run, until: float) -> None:
        self.next, self.last = run
        self.until = until


class Lease:
    """Runs of numbers that a worker may give without asking.

    `seconds` is how many seconds of its own demand a worker takes ahead, 0: none. `clock` tells monotonic seconds.
    """

    __slots__ = (
        "_claims",
        "_clock",
        "_looked",
        "_numbers",
        "_rate",
        "_seconds",
        "_size",
        "_spans",
        "back",
        "left",
        "limit",
        "low",
        "most",
        "stopped",
        "terms",
    )

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        #: Whether nothing is wanted any more: what a batch on its way brings goes back at once.
        self.stopped = False
        self._clock = clock
        self._spans: list[Span] = []
        #: Numbers that may be given, unless their time is over.
        self.left = 0
        #: What is left when it is time to ask for more; -1: not at all.
        self.low = -1
        #: Runs to give back: nobody has got them.
        self.back: list[Run] = []
        #: Epoch and revision of the counter that lent them, its limit, and its largest claim (0: no bound).
        self.terms = (0, 0)
        self.limit = self.most = 0
        self._claims = self._numbers = 0  # admitted since it was looked last
        self._looked = clock()
        self._rate = 0.0  # claims a second
        self._size = 1.0  # numbers a claim

    def take(self, size: int) -> int:
        """The last of `size` numbers that follow each other, which are now the claim's; 0 if there are none."""
        if size > self.most > 0:
            return 0
        span = self._spans[0]
        number = span.next + size - 1
        if number <= span.last and self._clock() < span.until:
            span.next += size
            self.left -= size
            return number
        self.expire()
        for span in self._spans:
            number = span.next + size - 1
            if number <= span.last:
                span.next += size
                self.left -= size
                return number
        return 0

    def held(self) -> list[Run]:
        """What is left of the runs."""
        return [(span.next, span.last) for span in self._spans if span.next <= span.last]

    def add(self, verdict: Verdict, until: float) -> None:
        """Hold what was lent, until a moment of the clock. What was lent on other terms ends."""
        self.see((verdict.epoch, verdict.revision))
        self._spans += [Span(run, until) for run in verdict.lent]
        self.left += total(verdict.lent)
        self.terms, self.limit, self.most = (verdict.epoch, verdict.revision), verdict.limit, verdict.most

    def see(self, terms: tuple[int, int]) -> None:
        """The counter has this epoch and revision: what was lent on other terms ends.

        Of another epoch nothing goes back, not even what was put aside: it would be taken for numbers of this one.
        """
        if terms[0] != self.terms[0]:
            self.drop()
        elif terms != self.terms:
            self.end()

    def expire(self) -> None:
        """Put aside what may no longer be given, so that it goes back."""
        now = self._clock()
        self._keep([span for span in self._spans if now < span.until and span.next <= span.last])

    def end(self) -> None:
        """Give nothing any more: all goes back."""
        self._keep([])

    def stop(self) -> None:
        """Want nothing more, and give back what there is."""
        self._seconds, self.stopped = 0.0, True
        self.end()

    def drop(self) -> None:
        """Give nothing any more, and nothing back: the store doesn't know of it."""
        self._spans, self.left, self.back = [], 0, []

    def used(self, claims: int, numbers: int) -> None:
        """So many claims were admitted, for so many numbers, that a lease is for."""
        self._claims += claims
        self._numbers += numbers

    def want(self) -> int:
        """How many numbers it is worth to be lent now; 0: none."""
        now = self._clock()
        elapsed = now - self._looked
        if elapsed >= LOOK_SECONDS:
            weight = min(1.0, elapsed / FADE_SECONDS)
            self._rate += (self._claims / elapsed - self._rate) * weight
            if self._claims:
                self._size += (self._numbers / self._claims - self._size) * weight
            self._claims = self._numbers = 0
            self._looked = now
        usable = self._rate * LEASE_SECONDS
        if usable < LEASE_LEAST or not self._seconds:
            self.low = -1
            return 0
        target = int(min(usable, max(self._rate, BUSY) * self._seconds) * self._size)
        self.low = target // LOW
        return max(0, target - self.left)

    def _keep(self, spans: list[Span]) -> None:
        aside = [(span.next, span.last) for span in self._spans if span.next <= span.last and span not in spans]
        self._spans = spans
        self.back += aside
        self.left -= total(aside)
