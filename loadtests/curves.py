"""Latency and cost over offered load: the same absolute rates for all contenders, up to and over the knee."""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtests import tools
from loadtests.certificate import certificate
from loadtests.latencies import Latencies
from loadtests.measure import Lab, Results, sum_of
from loadtests.meter import Meter
from loadtests.open_model.outcome import Open
from loadtests.placement import PLACEMENTS, Placement
from loadtests.revisions import ROOT
from loadtests.rig.processes import spawn, stop
from loadtests.running import ContenderError
from loadtests.statistics import Ratio, ratio
from loadtests.tools import TOOLS, Load, ToolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.design import Options, Pair
    from loadtests.measure import Progress
    from loadtests.running import Elsewhere, Running

#: Of the capacity of the first contender, measured in this run.
SHARES = (0.10, 0.25, 0.50, 0.75, 0.90, 1.10)
QUICK_SHARES = (0.25, 0.50, 0.90)
#: Milliseconds: the knee is the greatest rate at which a hundredth of the requests waits longer.
KNEE = 10.0
PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99)
#: Connections, so many that none is missing below the knee.
CONNECTIONS = 128
#: Slices of the closed loop that say what the capacity is.
CAPACITY_SLICES = 5


class Curves(Lab):
    """In every round all rates, in an order that is drawn, and at each rate all contenders next to each other."""

    def __init__(self, options: Options, progress: Progress, shares: tuple[float, ...]) -> None:
        super().__init__(options, progress)
        self.shares = shares
        self.results.options["open"] = True

    def measure(self, pairs: list[Pair]) -> None:
        first = pairs[0].ours
        if first not in self.up:
            return
        rates = self._rates(first)
        draw = random.Random(self.options.seed)
        self._progress.phase("Measuring", self.options.slices * len(rates))
        for turn in range(self.options.slices):
            for rate in draw.sample(rates, len(rates)):
                if self.options.minutes and time.monotonic() - self._begun > 60 * self.options.minutes:
                    self.results.skipped.append("what was left of the slices: the time was up")
                    return
                self._step(f"{rate:,.0f} requests/s")
                for key in draw.sample(list(self.up), len(self.up)):
                    self._offer(key, rate, turn)

    def _rates(self, first: str) -> list[float]:
        """Shares of what the first contender can do, under a closed loop."""
        running, found = self.up[first], []
        self._progress.phase("Capacity", CAPACITY_SLICES)
        for _ in range(CAPACITY_SLICES):
            self._step(first)
            load = Load(self.options.connections[0], self.options.requests, self.options.seconds)
            outcome = tools.run(TOOLS[self.options.tool], running.url, load, prefix=self._placement.prefix())
            found.append(outcome.requests_per_second)
            self.claimed_by(running, load.connections)
        capacity = statistics.median(found)
        self.results.options["capacity"] = capacity
        return [round(share * capacity) for share in self.shares]

    @property
    def _placement(self) -> Placement:
        return PLACEMENTS[self.options.placements[0]]

    def _offer(self, key: str, rate: float, turn: int) -> None:
        running = self.up[key]
        try:
            run = {"key": key, "rate": rate, "slice": turn, **self._at_rate(running, rate, turn)}
        except (ToolError, ContenderError, OSError) as error:
            self._error(f"{key}, slice {turn}: {error}")
            if not running.alive:
                self._drop(key)
            return
        self.results.runs.append(run)
        for wrong in filter(None, (run["wrong"], run["unbalanced"])):
            self._error(f"{key}, slice {turn}: {wrong}")

    def _at_rate(self, running: Running | Elsewhere, rate: float, turn: int) -> dict[str, Any]:
        seconds, placement = max(1, self.options.seconds), self._placement
        running.place(placement.server, placement.store)
        limit = running.limit if running.contender.exact else None
        before, meter = sum_of(running, ["default"]), Meter(running)
        found = offer(running.url, rate, seconds, limit, self.options.seed + turn, placement.prefix())
        cost = meter.read(found.answered, found.generator_seconds)
        lost = found.lost + found.timed_out - found.unsent
        return {
            **asdict(found),
            **cost,
            "unbalanced": self.unbalanced(running, ["default"], before, found.admitted, lost),
            "void": found.void,
            "generator_share": found.generator_seconds / seconds,
        }


def offer(
    url: str, rate: float, seconds: float, limit: int | None, seed: int, prefix: Sequence[str] = (), *more: str
) -> Open:
    """One run of the generator, in a process of its own, with `more` options. Raises ToolError."""
    with tempfile.TemporaryDirectory(prefix="loadtests-") as name:
        output, said = Path(name) / "open.json", Path(name) / "said"
        command = [*prefix, sys.executable, "-m", "loadtests.open_model", url, "--rate", str(rate)]
        command += ["--seconds", str(seconds), "--seed", str(seed), "--connections", str(CONNECTIONS)]
        command += ["--output", str(output), *(["--limit", str(limit)] if limit is not None else []), *more]
        if url.startswith("https://127.0.0.1:"):
            command += ["--ca", str(certificate().authority)]
        with said.open("wb") as file:
            process = spawn(command, output=file.fileno(), cwd=ROOT)
        try:
            status = process.wait(60 + 5 * seconds)
        except subprocess.TimeoutExpired:
            raise ToolError("the generator did not end") from None
        finally:
            stop(process, patience=2)
        if status != 0:
            raise ToolError(f"the generator ended with status {status}: {said.read_text()[-200:].strip()}")
        return Open(**json.loads(output.read_text()))


def offered(results: Results, key: str) -> dict[float, list[dict[str, Any]]]:
    """The valid runs of a contender by their rate."""
    found: dict[float, list[dict[str, Any]]] = {}
    for run in sorted(results.runs, key=lambda run: float(run["rate"])):
        if run["key"] == key and not run["void"]:
            found.setdefault(run["rate"], []).append(run)
    return found


def merged(runs: list[dict[str, Any]]) -> Latencies:
    return Latencies.merged(Latencies(run["latencies"]) for run in runs)


def knee(results: Results, key: str) -> float | None:
    """The greatest rate up to which the p99 stays below `KNEE`."""
    below = None
    for rate, runs in offered(results, key).items():
        if merged(runs).percentile(99) >= KNEE:
            break
        below = rate
    return below


def at_equal_load(results: Results, ours: str, theirs: str, rate: float, figure: str) -> Ratio | None:
    """Slice by slice, at the same offered rate."""
    mine, others = (
        {run["slice"]: run[figure] for run in offered(results, key).get(rate, []) if run[figure] is not None}
        for key in (ours, theirs)
    )
    return ratio(mine, others)


def write_hgrm(results: Results, folder: Path) -> None:
    """A file for each contender and rate, as HdrHistogram's plotter reads them."""
    for key in results.contenders:
        for rate, runs in offered(results, key).items():
            merged(runs).write_hgrm(folder / f"{re.sub(r'[^a-z0-9+@]+', '-', key.lower())}-{rate:.0f}.hgrm")
