"""Medians, bootstrap intervals and ratios paired by round."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A median, the 95 % interval that a bootstrap gives it, and of how many values."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def differs_from_one(self) -> bool:
        """Whether a ratio says anything: with a single round, or with 1 inside the interval, it does not."""
        return self.rounds > 1 and not self.low <= 1 <= self.high

    def overlaps(self, other: Estimate) -> bool:
        return self.low <= other.high and other.low <= self.high


def estimate(values: Sequence[float]) -> Estimate | None:
    """The median of the rounds with its percentile bootstrap interval (Efron, 1979); None without values.

    The resampling starts from a fixed seed, so that the same rounds always give the same interval. With fewer than six
    rounds it is in effect the range of what was seen.
    """
    if not values:
        return None
    draw = random.Random(1979)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975) - 1]
    return Estimate(statistics.median(values), low, high, len(values))


def paired_ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """`ours` over `theirs`, round by round: both map a round's number to its figure.

    What disturbs a whole round touches both sides of its ratio. Rounds that only one side finished are left out.
    """
    rounds = sorted(ours.keys() & theirs.keys())
    return estimate([ours[number] / theirs[number] for number in rounds if theirs[number] > 0])


class Histogram:
    """Latencies in buckets that grow by 2 %, so that a percentile is right to about 1 % at any size."""

    GROWTH = math.log(1.02)

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, milliseconds: float) -> None:
        bucket = int(math.log(max(milliseconds, 0.001)) // self.GROWTH)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += milliseconds
        self.largest = max(self.largest, milliseconds)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Milliseconds that `percent` of the latencies do not exceed; 0 without any."""
        wanted, seen = self.count * percent / 100, 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return min(math.exp((bucket + 0.5) * self.GROWTH), self.largest)
        return self.largest
