"""From slices to statements: what a run says of each pair, which of it was named beforehand, and what is in doubt."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtests.statistics import LEVEL, Ratio, holm, of_logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.measure import Results

#: What is compared: the throughput of a saturated server, and what it costs there.
THROUGHPUT, CPU = "requests_per_second", "cpu_us"
TITLES = {THROUGHPUT: "requests/s at capacity", CPU: "server CPU a request at capacity"}

CONTROL_DIFFERS = "**The A/A control differs**: the run tells equals apart, so read nothing from it"

#: From these shares on, the machine and the generator say as much of a figure as the server does.
BUSY_MACHINE, BUSY_GENERATOR = 0.9, 0.7
#: Cores used by other programs, or kept by the host, from which on a report says so.
DISTURBED = 0.25


@dataclass(frozen=True)
class Aim:
    """A ratio that the service is held to, of its first contender to another one."""

    theirs: str
    figure: str
    ratio: float
    at_least: bool


AIMS = (
    Aim("fastapi+uvicorn", THROUGHPUT, 3.2, at_least=True),
    Aim("fastapi+uvicorn", CPU, 0.25, at_least=False),
    Aim("granian+redis[PYTHONRICING_REQUEST_LOG=off]", THROUGHPUT, 0.9, at_least=True),
    Aim("asgi-batch+granian", THROUGHPUT, 0.8, at_least=True),
    Aim("granian+memory", THROUGHPUT, 0.9, at_least=True),
    Aim("constant+granian", THROUGHPUT, 0.85, at_least=True),
)


@dataclass(frozen=True)
class Comparison:
    """A figure of a pair. `p` is adjusted where it is exploratory; the control is judged by itself."""

    number: int
    pair: dict[str, Any]
    figure: str
    ratio: Ratio
    p: float

    @property
    def primary(self) -> bool:
        return bool(self.pair["primary"]) and self.figure == THROUGHPUT

    @property
    def kind(self) -> str:
        return "A/A control" if self.pair["control"] else "primary" if self.primary else "exploratory"

    @property
    def verdict(self) -> str:
        return self.ratio.judged(self.p)

    @property
    def name(self) -> str:
        theirs = "a copy of it" if self.pair["control"] else self.pair["theirs"]
        return f"{self.pair['ours']} / {theirs}"

    @property
    def place(self) -> str:
        counters = f", {self.pair['counters']} counters" if self.pair["counters"] > 1 else ""
        return f"{self.pair['placement']}, {self.pair['connections']} connections{counters}"


def comparisons(results: Results) -> list[Comparison]:
    """Primary ones first, then the control, then what was explored."""
    found = [
        Comparison(number, pair, figure, ratio, ratio.p)
        for number, pair in enumerate(results.pairs)
        for figure in TITLES
        if (ratio := results.ratio(number, figure)) is not None
    ]
    explored = [each for each in found if each.kind == "exploratory" and each.ratio.slices]
    adjusted = holm([each.p for each in explored])
    explored = [Comparison(c.number, c.pair, c.figure, c.ratio, p) for c, p in zip(explored, adjusted, strict=True)]
    primary = [each for each in found if each.kind == "primary"]
    return [*primary, *(each for each in found if each.pair["control"]), *explored]


def control_differs(results: Results) -> bool:
    """Whether the run tells equals apart: one figure in twenty does by chance, and more than that by a fault."""
    return any(each.verdict == "differs" for each in comparisons(results) if each.pair["control"])


def aims(results: Results) -> list[tuple[Aim, Ratio, str]]:
    """Each aim whose pair was measured at the base, with its ratio and what the bound says of it."""
    found: list[tuple[Aim, Ratio, str]] = []
    base = results.pairs[0] if results.pairs else {}
    for number, pair in enumerate(results.pairs):
        about = results.contenders.get(pair["theirs"], {})
        alike = all(pair[name] == base[name] for name in ("ours", "placement", "connections", "counters"))
        for aim in AIMS:
            if (
                alike
                and not pair["control"]
                and about.get("name") == aim.theirs
                and pair["ours"].startswith("granian+")
            ):
                ratio = results.ratio(number, aim.figure)
                if ratio is not None:
                    found.append((aim, ratio, ratio.reaches(aim.ratio, at_least=aim.at_least)))
    return found


def of_side(results: Results, key: str, placement: str, connections: int, counters: int) -> list[dict[str, Any]]:
    """The slices of a contender under these circumstances, whatever it was compared with."""
    wanted = {
        number
        for number, pair in enumerate(results.pairs)
        if (pair["placement"], pair["connections"], pair["counters"]) == (placement, connections, counters)
    }
    return [run for run in results.runs if run["key"] == key and run["pair"] in wanted]


def typical(runs: list[dict[str, Any]], figure: str) -> Ratio | None:
    """A figure over slices, estimated and bounded as ratios are."""
    values = [run[figure] for run in runs if run[figure] is not None]
    return of_logs([math.log(value) for value in values if value > 0])


def marks(results: Results) -> list[str]:
    """What somebody who reads the figures has to know of the run."""
    found = []
    if control_differs(results):
        found.append(CONTROL_DIFFERS)
    cores = results.machine["cores"]
    shares: list[tuple[str, float, Callable[[dict[str, Any]], float]]] = [
        ("the machine was over 90 % busy", BUSY_MACHINE, lambda run: run["machine_cores"] / cores),
        ("the generator used over 70 % of its cores", BUSY_GENERATOR, lambda run: run["generator_share"]),
        ("other programs used over 0.25 cores", DISTURBED, lambda run: run["other_cores"]),
        ("the host kept over 0.25 cores to others (steal)", DISTURBED, lambda run: run["stolen_cores"]),
    ]
    for text, limit, share in shares:
        over = sum(share(run) > limit for run in results.runs)
        if results.runs and over / len(results.runs) > LEVEL:
            found.append(f"In {over} of {len(results.runs)} slices {text}")
    return found


def median(runs: list[dict[str, Any]], figure: str) -> float | None:
    values = [run[figure] for run in runs if run[figure] is not None]
    return statistics.median(values) if values else None
