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

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from tests.simulation import crowd
from tests.simulation.mutants import MUTANTS
from tests.simulation.report import explain, trace
from tests.simulation.scene import simulate


class Tally:
    """What has been run so far."""

    def __init__(self, seconds: float | None) -> None:
        self.began = time.monotonic()
        self.seconds = seconds
        self.histories = self.claims = self.operations = 0
        self.faults = Counter[str]()
        self.objections: dict[int, tuple[list[str], str]] = {}

    def add(self, outcome: crowd.Outcome) -> None:
        self.histories += outcome.histories
        self.claims += outcome.claims
        self.operations += outcome.operations
        self.faults += outcome.faults
        self.objections |= outcome.objections

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    def __str__(self) -> str:
        rate = self.operations / max(self.passed, 1e-9)
        faults = ", ".join(f"{kind} {number:,}" for kind, number in sorted(self.faults.items()))
        return (
            f"{self.histories:,} histories, {self.operations:,} operations ({self.claims:,} claims) in {self.passed:.0f} s, "
            f"{rate:,.0f} a second, "
            f"{len(self.objections)} with objections\n{faults}"
        )


def read(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Histories on seeds, judged.")
    parser.add_argument("--seed", type=int, help="replay one history with its trace")
    parser.add_argument("--why", type=int, metavar="SEED", help="why a history fails: the fewest faults that it takes")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--first", type=int, help="the first seed; by default the time of day, so that each run is new")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--mutants", action="store_true", help="after how many histories each mutant is noticed")
    return parser.parse_args(arguments)


def replay(seed: int) -> bool:
    scene = simulate(seed)
    print(*(f"plan: {key} {value}" for key, value in vars(scene.plan).items() if key != "faults"), sep="\n")
    print(*trace(scene), sep="\n")
    return not scene.history.objections


def search(tally: Tally, first: int, jobs: int) -> bool:
    """Run histories until it is time, or somebody presses Ctrl-C."""
    total = 1.0 if tally.seconds is None else tally.seconds
    columns = (TextColumn("{task.description}"), *((BarColumn(),) if tally.seconds else (SpinnerColumn(),)))
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(str(tally), total=total)
            for outcome in crowd.run(first, jobs):
                tally.add(outcome)
                progress.update(
                    task, description=str(tally), completed=min(tally.passed, total) if tally.seconds else 0
                )
                for seed, (rules, text) in outcome.objections.items():
                    progress.console.print(f"seed {seed}: {text} ({len(rules)} rules)", markup=False)
                if tally.seconds is not None and tally.passed >= tally.seconds:
                    break
    except KeyboardInterrupt:
        pass
    print(tally)
    for seed in sorted(tally.objections)[:3]:
        print(*explain(seed), sep="\n")
    if tally.objections:
        print("for FAILED_ONCE in tests/simulation/seeds.py:")
    for seed, (_, text) in sorted(tally.objections.items()):
        print(f"    {seed},  # {text}"[:120])
    return not tally.objections


def notice(jobs: int) -> bool:
    """After how many histories each mutant is noticed."""
    noticed = 0
    try:
        for name, histories, rule in crowd.run_mutants(jobs):
            print(f"{name:45} {'not noticed' if histories is None else f'{histories:,}':>12}  {rule}", flush=True)
            noticed += histories is not None
    except KeyboardInterrupt:
        pass
    print(f"{noticed} of {len(MUTANTS)} mutants noticed")
    return noticed == len(MUTANTS)


def main(arguments: list[str]) -> int:
    options = read(arguments)
    if options.seed is not None:
        good = replay(options.seed)
    elif options.why is not None:
        lines = list(explain(options.why))
        print(*lines, sep="\n")
        good = len(lines) == 1
    elif options.mutants:
        good = notice(options.jobs)
    else:
        first = int(time.time()) * 1000 if options.first is None else options.first
        good = search(Tally(options.seconds), first, options.jobs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
