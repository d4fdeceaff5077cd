"""What a run of the generator means: every answer checked, latencies and the generator's own lateness as histograms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtests.checks import Checker, Wrong
from loadtests.latencies import Latencies

if TYPE_CHECKING:
    from loadtests.open_model.generator import Asked

#: A run is void where the generator's own lateness has more than this share of the p99 that it measured.
OWN_SHARE = 0.1


@dataclass
class Open:
    """One run. `latencies` and `lateness` are encoded histograms in milliseconds' thousandths."""

    rate: float
    offered: int
    seconds: float
    answered: int = 0
    admitted: int = 0
    waited: int = 0
    unsent: int = 0
    timed_out: int = 0
    lost: int = 0
    reopened: int = 0
    latencies: str = ""
    lateness: str = ""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    late_p99_ms: float = 0.0
    #: What was wrong with answers, each with how often.
    wrong: dict[str, int] = field(default_factory=dict)
    generator_seconds: float = 0.0

    @property
    def void(self) -> bool:
        return self.late_p99_ms > OWN_SHARE * self.p99_ms


def judged(asked: Asked, rate: float, seconds: float, limit: int | None) -> Open:
    """Check every answer, against the limit as it was set; None: any 200 will do."""
    latencies, lateness, wrong = Latencies(), Latencies(), Counter[str]()
    checker, admitted, answered = Checker(limit or 0), 0, 0
    for nanoseconds, status, body in asked.answers:
        latencies.add(nanoseconds / 1e6)
        if status == 0:
            continue
        answered += 1
        admitted += status == 200
        try:
            if limit is not None:
                checker.check(status, body, 1)
            elif status != 200:
                raise Wrong(f"status {status}")
        except Wrong as error:
            wrong[str(error)] += 1
    for nanoseconds in asked.late:
        lateness.add(nanoseconds / 1e6)
    return Open(
        rate,
        len(asked.late),
        seconds,
        answered=answered,
        admitted=admitted,
        waited=asked.waited,
        unsent=asked.unsent,
        timed_out=asked.timed_out,
        lost=asked.lost,
        reopened=asked.reopened,
        latencies=latencies.encoded(),
        lateness=lateness.encoded(),
        p50_ms=latencies.percentile(50),
        p99_ms=latencies.percentile(99),
        late_p99_ms=lateness.percentile(99),
        wrong=dict(wrong.most_common(8)),
    )
