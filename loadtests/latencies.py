"""Latencies in HDR histograms: three digits at any size, to be merged, never averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Microseconds: from the least to the greatest that is told apart, two minutes.
LOWEST, HIGHEST = 1, 120_000_000


class Latencies:
    """A distribution of latencies, in milliseconds; 0 where there are none."""

    def __init__(self, encoded: str | None = None) -> None:
        self._histogram = HdrHistogram(LOWEST, HIGHEST, 3)
        if encoded is not None:
            self._histogram.decode_and_add(encoded)

    @classmethod
    def merged(cls, parts: Iterable[Latencies]) -> Latencies:
        whole = cls()
        for part in parts:
            whole._histogram.add(part._histogram)
        return whole

    def add(self, milliseconds: float) -> None:
        self._histogram.record_value(min(HIGHEST, max(LOWEST, round(milliseconds * 1000))))

    @property
    def count(self) -> int:
        return int(self._histogram.total_count)

    @property
    def mean(self) -> float:
        return float(self._histogram.get_mean_value()) / 1000 if self.count else 0.0

    @property
    def largest(self) -> float:
        return float(self._histogram.get_max_value()) / 1000 if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Milliseconds that `percent` of the latencies do not exceed."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1000 if self.count else 0.0

    def encoded(self) -> str:
        """As the HdrHistogram libraries of all languages read it."""
        return str(self._histogram.encode().decode())

    def write_hgrm(self, path: Path) -> None:
        """The percentiles in milliseconds, as HdrHistogram's plotter reads them."""
        with path.open("wb") as file:
            self._histogram.output_percentile_distribution(file, 1000)
