"""Ratios of slices that lay side by side: the Hodges-Lehmann estimate with the exact signed-rank interval.

Hodges and Lehmann, "Estimates of Location Based on Rank Tests", Ann. Math. Statist. 34(2), 1963; the interval is the
set of ratios that Wilcoxon's signed-rank test doesn't reject. It assumes no distribution, only that the noise of the
two sides of a pair is alike. tests/loadtests/test_statistics.py holds its rate of false alarms.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Below this many pairs of slices no interval of 95 % exists: 2 / 2**5 is more than 0.05.
FEWEST = 6
LEVEL = 0.05
#: What counts as equal: a ratio between 1 / 1.05 and 1.05.
EQUAL = 1.05
#: How many pairs of slices a primary comparison has before its width may stop it, and at most.
PRIMARY, MOST = 40, 120

Verdict = Literal["differs", "equal within 5 %", "undecided", "too few slices"]


@dataclass(frozen=True)
class Ratio:
    """Ours over theirs. `low` and `high` bound it with 95 %; with fewer than `FEWEST` slices they are the range.

    `p` is the exact two-sided probability of what was seen if both were equal.
    """

    value: float
    low: float
    high: float
    slices: int
    p: float

    @property
    def verdict(self) -> Verdict:
        """Of this ratio alone, as it is said of a primary comparison."""
        return self.judged(self.p)

    def judged(self, p: float) -> Verdict:
        """With another probability in place of its own: an exploratory one, as Holm's method adjusts it."""
        if self.slices < FEWEST:
            return "too few slices"
        if p <= LEVEL:
            return "differs"
        return "equal within 5 %" if self.low >= 1 / EQUAL and self.high <= EQUAL else "undecided"

    def reaches(self, aim: float, *, at_least: bool) -> Literal["reached", "missed", "undecided"]:
        """An aim is judged by the bound: reached if the whole interval is on its side, missed if on the other."""
        if self.slices < FEWEST:
            return "undecided"
        low, high = (self.low, self.high) if at_least else (-self.high, -self.low)
        aim = aim if at_least else -aim
        return "reached" if low >= aim else "missed" if high < aim else "undecided"

    @property
    def width(self) -> float:
        """Of the interval, as a share: 0.05 where it reaches from 0.975 to 1.025. Endless with too few slices."""
        return math.log(self.high / self.low) if self.slices >= FEWEST else math.inf

    def overlaps(self, other: Ratio) -> bool:
        return self.low <= other.high and other.low <= self.high


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Ratio | None:
    """The ratio over the slices, by their numbers, that both sides have finished; None without any."""
    numbers = sorted(ours.keys() & theirs.keys())
    both = [(ours[number], theirs[number]) for number in numbers if ours[number] > 0 and theirs[number] > 0]
    return of_logs([math.log(mine / other) for mine, other in both])


def of_logs(logs: Sequence[float]) -> Ratio | None:
    """The ratio whose logarithm each slice has measured."""
    n = len(logs)
    if n == 0:
        return None
    # Walsh's averages of all pairs, each value with itself too: as many of them are above 0 as W, the rank sum, says.
    walsh = sorted((logs[i] + logs[j]) / 2 for i in range(n) for j in range(i, n))
    below, not_above = bisect_left(walsh, 0.0), bisect_right(walsh, 0.0)
    # What is exactly 0 speaks for neither side.
    p = min(1.0, 2 * _at_most(n)[min(not_above, len(walsh) - below)])
    k = _cut(n)
    low, high = (walsh[k - 1], walsh[-k]) if n >= FEWEST else (min(logs), max(logs))
    return Ratio(math.exp(statistics.median(walsh)), math.exp(low), math.exp(high), n, p)


@cache
def _at_most(n: int) -> tuple[float, ...]:
    """For each w the exact probability that Wilcoxon's W of n values around 0 is at most w."""
    ways = [1]
    for rank in range(1, n + 1):
        longer = [*ways, *[0] * rank]
        for w, count in enumerate(ways):
            longer[w + rank] += count
        ways = longer
    total, seen, found = 2**n, 0, []
    for count in ways:
        seen += count
        found.append(seen / total)
    return tuple(found)


@cache
def _cut(n: int) -> int:
    """The interval goes from the k-th smallest of Walsh's averages to the k-th largest."""
    return sum(probability <= LEVEL / 2 for probability in _at_most(n))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted so that with 95 % none of those that are equal is said to differ (Holm, Scand. J. Statist. 6, 1979)."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, ps[number] * (len(ps) - place)))
        adjusted[number] = highest
    return adjusted


def enough(ratios: Sequence[Ratio | None], width: float) -> bool:
    """Whether to stop: by the widths of the intervals, never by where they lie."""
    return all(each is not None and each.slices >= PRIMARY and each.width <= width for each in ratios)
