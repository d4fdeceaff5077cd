"""From single runs to statements: medians with intervals, ratios paired by round, and what they mean in words."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtests.contenders import PEERS
from loadtests.measure import Case
from loadtests.statistics import Estimate, estimate, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.measure import Results


@dataclass(frozen=True)
class Figure:
    """A column of the runs: its title with the unit, digits to show, and whether more is better."""

    key: str
    title: str
    digits: int
    more_is_better: bool = False


FIGURES = {
    figure.key: figure
    for figure in (
        Figure("requests_per_second", "requests/s", 0, more_is_better=True),
        Figure("mean_ms", "mean ms", 3),
        Figure("p50_ms", "p50 ms", 2),
        Figure("p95_ms", "p95 ms", 2),
        Figure("p99_ms", "p99 ms", 2),
        Figure("max_ms", "max ms", 1),
        Figure("failures", "failures", 0),
        Figure("cpu_us", "server CPU µs/request", 1),
        Figure("store_cpu_us", "store CPU µs/request", 1),
        Figure("switches", "context switches/request", 2),
        Figure("store_commands", "store commands/1000 requests", 0),
        Figure("resident_mb", "resident MB", 0),
        Figure("worker_mb", "MB a worker", 1),
    )
}

#: What ratios are made of.
COMPARED = ("requests_per_second", "mean_ms", "p99_ms", "cpu_us")


GRANIAN_UVICORN = "Granian against uvicorn"
SYNCED = "synced against unsynced"
OPTIONS = "with options against without"
QUESTIONS = (GRANIAN_UVICORN, SYNCED, OPTIONS, *(peer.question for peer in PEERS.values()))


class Analysis:
    """The runs of a comparison, by case."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.contenders = results.contenders
        self.cases: dict[Case, list[dict[str, Any]]] = defaultdict(list)
        for run in results.runs:
            self.cases[Case(run["contender"], run["tool"], run["connections"], run["counters"])].append(run)
        order = {name: number for number, name in enumerate(self.contenders)}
        self.order: Callable[[Case], Any] = lambda case: (
            order.get(case.contender, 0),
            case.tool,
            case.connections,
            case.counters,
        )

    @property
    def base_workers(self) -> int:
        return int(self.results.options["workers"][0])

    def base_connections(self, tool: str) -> int:
        return 10 if tool.startswith("ab") else int(self.results.options["connections"][0])

    def is_base(self, case: Case) -> bool:
        return (
            self.contenders[case.contender]["workers"] == self.base_workers
            and case.connections == self.base_connections(case.tool)
            and case.counters == self.results.options["counters"][0]
        )

    def base_cases(self, tool: str) -> list[Case]:
        return sorted((case for case in self.cases if case.tool == tool and self.is_base(case)), key=self.order)

    @property
    def tools(self) -> list[str]:
        return [tool for tool in self.results.options["tools"] if self.base_cases(tool)]

    @property
    def best_tool(self) -> str | None:
        """The one whose figures say most about the server: kept connections, and little of its own in the way."""
        return next((tool for tool in ("wrk", "ab -k", "ab", "locust") if tool in self.tools), None)

    def values(self, case: Case, figure: str) -> dict[int, float]:
        """The figure of each round."""
        return {run["round"]: run[figure] for run in self.cases[case] if run[figure] is not None}

    def estimate(self, case: Case, figure: str) -> Estimate | None:
        return estimate(list(self.values(case, figure).values()))

    def saturated(self, case: Case) -> bool:
        """Whether in most rounds the load generator had no core left to ask faster."""
        runs = self.cases[case]
        return 2 * sum(bool(run["generator_saturated"]) for run in runs) > len(runs)

    def distribution(self, case: Case) -> list[tuple[float, float]]:
        """Percentage and milliseconds, each the median of the rounds."""
        points: dict[float, list[float]] = defaultdict(list)
        for run in self.cases[case]:
            for percent, milliseconds in run["percentiles"]:
                points[percent].append(milliseconds)
        return [(percent, statistics.median(values)) for percent, values in sorted(points.items())]

    def sweep(self, vary: str, figure: str) -> dict[str, list[tuple[float, Estimate]]]:
        """For each contender's name, the figure against workers, connections or counters; where there are several."""
        lines: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
        tool = next((name for name in ("wrk", "ab -k", "locust", "ab") if name in self.results.options["tools"]), None)
        for case in sorted(self.cases, key=self.order):
            about = self.contenders[case.contender]
            place = {"workers": about["workers"], "connections": case.connections, "counters": case.counters}
            base = {
                "workers": self.base_workers,
                "connections": self.results.options["connections"][0],
                "counters": self.results.options["counters"][0],
            }
            others_at_base = all(place[name] == base[name] for name in base if name != vary)
            value = self.estimate(case, figure)
            if case.tool == tool and others_at_base and value is not None:
                lines[about["name"]].append((place[vary], value))
        return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items() if len(points) > 1}

    def ratios(self) -> list[Ratio]:
        """Every pair that answers a question, wherever both sides were measured alike; by question."""
        found: list[Ratio] = []
        for ours in sorted(self.cases, key=self.order):
            for theirs in sorted(self.cases, key=self.order):
                question = self._question(ours, theirs)
                if question is not None:
                    found += [ratio for figure in COMPARED if (ratio := self._ratio(question, ours, theirs, figure))]
        return sorted(found, key=lambda ratio: QUESTIONS.index(ratio.question))

    def _question(self, ours: Case, theirs: Case) -> str | None:
        a, b = self.contenders[ours.contender], self.contenders[theirs.contender]
        alike = (ours.tool, ours.connections, ours.counters) == (theirs.tool, theirs.connections, theirs.counters)
        if not alike or a["workers"] != b["workers"] or ours == theirs:
            return None
        same_server, same_options = a["server"] == b["server"], a["options"] == b["options"]
        if a["app"] == b["app"] and a["store"] == b["store"]:
            if same_options and (a["server"], b["server"]) == ("granian", "uvicorn"):
                return GRANIAN_UVICORN
            if same_server and a["options"] and not b["options"]:
                return OPTIONS
        if a["app"] != "service" or not same_options:
            return None
        if b["app"] == "service":
            synced = same_server and a["store"] != "memory" and b["store"] == "memory"
            return SYNCED if synced else None
        peer = PEERS[b["app"]]
        other_store = peer.is_service and a["store"] != b["store"]
        other_server = not same_server and (peer.is_service or b["store"] == "none")
        return None if other_store or other_server else peer.question

    def _ratio(self, question: str, ours: Case, theirs: Case, figure: str) -> Ratio | None:
        value = paired_ratio(self.values(ours, figure), self.values(theirs, figure))
        if value is None:
            return None
        limited = figure in ("requests_per_second", "mean_ms", "p99_ms") and (
            self.saturated(ours) or self.saturated(theirs)
        )
        return Ratio(question, ours, theirs, FIGURES[figure], value, limited)


@dataclass(frozen=True)
class Ratio:
    """`ours` over `theirs`. `limited`: the load generator was at its own limit for one of them."""

    question: str
    ours: Case
    theirs: Case
    figure: Figure
    value: Estimate
    limited: bool

    @property
    def ours_loses(self) -> bool:
        return self.value.differs_from_one and (self.value.median > 1) != self.figure.more_is_better

    @property
    def words(self) -> str:
        if self.value.rounds < 2:
            said = "one round: no interval"
        elif not self.value.differs_from_one:
            said = "no difference"
        else:
            said = "worse" if self.ours_loses else "better"
        return said + (", load generator at its limit" if self.limited else "")
