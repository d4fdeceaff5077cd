"""What the lab itself can tell: equals against equals, on this machine, for ten minutes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtests.statistics import FEWEST, PRIMARY, of_logs
from loadtests.verdicts import TITLES

if TYPE_CHECKING:
    from loadtests.measure import Results

#: Pairs of slices that a comparison may have: each is tried on all the windows of that length.
LENGTHS = (FEWEST, 12, 20, PRIMARY)
#: Differences that are laid onto the measured slices, in percent, and the share of windows that has to find one.
STEPS, POWER = tuple(range(1, 31)), 0.8


@dataclass(frozen=True)
class Found:
    """Windows without overlap, how many of them said that equals differ, and the least difference that was found."""

    figure: str
    slices: int
    windows: int
    alarms: int
    smallest: int | None

    @property
    def rate(self) -> float:
        return self.alarms / self.windows if self.windows else 0.0


def evaluate(results: Results) -> list[Found]:
    """Judge the slices of equals, window by window; then as if one side had been better by so many percent."""
    found = []
    for figure in TITLES:
        series = [logs for number in range(len(results.pairs)) if (logs := _logs(results, number, figure))]
        for length in LENGTHS:
            windows = [logs[i : i + length] for logs in series for i in range(0, len(logs) - length + 1, length)]
            alarms = sum(_differs(window) for window in windows)
            found.append(Found(figure, length, len(windows), alarms, _smallest(windows)))
        whole = [logs for logs in series if len(logs) > PRIMARY]
        longest = max(map(len, whole), default=0)
        if whole:
            found.append(Found(figure, longest, len(whole), sum(map(_differs, whole)), _smallest(whole)))
    return found


def _logs(results: Results, pair: int, figure: str) -> list[float]:
    sides: dict[str, dict[int, float]] = {"ours": {}, "theirs": {}}
    for run in results.runs:
        if run["pair"] == pair and run[figure] is not None:
            sides[run["side"]][run["slice"]] = run[figure]
    numbers = sorted(sides["ours"].keys() & sides["theirs"].keys())
    return [math.log(sides["ours"][number] / sides["theirs"][number]) for number in numbers]


def _differs(logs: list[float]) -> bool:
    found = of_logs(logs)
    return found is not None and found.verdict == "differs"


def _smallest(windows: list[list[float]]) -> int | None:
    for percent in STEPS:
        shift = math.log1p(percent / 100)
        if windows and sum(_differs([log + shift for log in logs]) for logs in windows) >= POWER * len(windows):
            return percent
    return None


def total(found: list[Found]) -> tuple[int, int]:
    """False alarms and windows, over all figures and lengths."""
    return sum(each.alarms for each in found), sum(each.windows for each in found)


def as_text(results: Results) -> str:
    """The table, and the two sentences that count."""
    found = evaluate(results)
    lines = [f"{'figure':34}{'slices':>8}{'windows':>9}{'false alarms':>14}{'smallest difference found':>27}"]
    for each in found:
        smallest = f"{each.smallest} %" if each.smallest else "-"
        alarms = f"{each.alarms} ({each.rate:.1%})"
        lines.append(f"{TITLES[each.figure]:34}{each.slices:8}{each.windows:9}{alarms:>14}{smallest:>27}")
    false, windows = total(found)
    lines.append(f"False alarms: {false} of {windows}, {false / windows if windows else 0:.1%}.")
    return "\n".join(lines)
