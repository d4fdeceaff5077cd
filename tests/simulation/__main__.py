"""`make simulate`: histories on every core until Ctrl-C, and what breaks in them.

    ARGS='--seconds 60'     for so long
    ARGS='--seed 4711'      one history, with its trace
    ARGS='--why 4711'       why it fails: the fewest faults, and the history of the counter concerned
    ARGS='--mutants'        after how many histories each broken mechanism is noticed
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.simulation import crowd, mutants
from tests.simulation.report import explain, trace
from tests.simulation.scene import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator


class Tally:
    """What has been run so far."""

    def __init__(self, seconds: float | None) -> None:
        self.began = time.monotonic()
        self.seconds = seconds
        self.histories = self.claims = 0
        self.faults = Counter[str]()
        self.objections: dict[int, tuple[list[str], str]] = {}

    def add(self, outcome: crowd.Outcome) -> None:
        self.histories += outcome.histories
        self.claims += outcome.claims
        self.faults += outcome.faults
        self.objections |= outcome.objections

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    def __str__(self) -> str:
        rate = self.claims / max(self.passed, 1e-9)
        faults = ", ".join(f"{kind} {number:,}" for kind, number in sorted(self.faults.items()))
        return (
            f"{self.histories:,} histories, {self.claims:,} claims in {self.passed:.0f} s, {rate:,.0f} a second, "
            f"{len(self.objections)} with objections\n{faults}"
        )
