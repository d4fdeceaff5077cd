"""What is compared with what, and in which order: adjacent slices of about a second, in the order ABBA or BAAB.

What drifts on a machine drifts slower than that, so that a pair of slices has the same drift on both sides, and the
second pair of a block has it the other way round.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loadtests.contenders import UNLIMITED, Contender
from loadtests.statistics import PRIMARY

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The headline benchmark's: `ab -n 10000 -c 10`.
AB_CONNECTIONS = 10
#: Comparisons that are named beforehand, at most: their intervals need no adjustment.
PRIMARIES = 3
CONTROL = "A/A control"

#: What the limit is, and so what the right answer is.
SCENARIOS = {
    "admitted": "every claim is admitted",
    "halted": "every claim is refused",
    "sale": "the counter starts at 0 before every slice, and most claims come after it has halted",
}


@dataclass(frozen=True)
class Options:
    """What to compare: the first contender with each of the others, or all `against` some; and with a copy of itself.

    The first of `workers`, `connections`, `counters` and `placements` is the base; the others are explored.
    """

    contenders: tuple[Contender, ...]
    workers: tuple[int, ...]
    connections: tuple[int, ...]
    #: Each of the contenders with each of these, instead of the first with the others.
    against: tuple[Contender, ...] = ()
    #: How many pairs are explored at the other workers, connections, counters and placements.
    varied: int = PRIMARIES
    counters: tuple[int, ...] = (1,)
    placements: tuple[str, ...] = ("free",)
    tool: str = "wrk"
    #: Pairs of slices of the primary comparisons and of the control; of the exploratory ones.
    slices: int = PRIMARY
    explored: int = 12
    seconds: int = 1
    requests: int = 2_000
    scenario: str = "admitted"
    limit: int = 100
    seed: int = 0
    #: Go on with the primary comparisons until their intervals are as narrow as this share; None: no longer.
    width: float | None = None
    #: Begin no block after this many minutes.
    minutes: float | None = None
    #: Something to read the figures beside.
    note: str = ""

    @property
    def start_limit(self) -> int:
        return {"admitted": UNLIMITED, "halted": 0, "sale": self.limit}[self.scenario]


@dataclass(frozen=True)
class Pair:
    """Two sides that are measured side by side. A side is the key of a contender, or of its copy."""

    ours: str
    theirs: str
    connections: int
    counters: int = 1
    placement: str = "free"
    primary: bool = False

    @property
    def control(self) -> bool:
        return self.theirs == copy_of(self.ours)

    @property
    def name(self) -> str:
        counters = f", {self.counters} counters" if self.counters > 1 else ""
        return f"{self.ours} / {self.theirs}, {self.connections} connections{counters}, {self.placement}"


def copy_of(key: str) -> str:
    """A second one of the same, started and stored apart."""
    return f"{key} again"


def plan(options: Options) -> tuple[dict[str, Contender], list[Pair]]:
    """Who has to be up, by key, and the pairs."""
    first, *others = options.contenders
    couples = [(one, other) for other in options.against for one in options.contenders if one != other]
    couples = couples or [(first, other) for other in others]
    workers, connections = options.workers[0], AB_CONNECTIONS if options.tool == "ab" else options.connections[0]
    counters, placement = options.counters[0], options.placements[0]
    up: dict[str, Contender] = {}
    pairs: dict[Pair, None] = {}

    def pair(one: Contender, other: Contender | None, count: int, **factors: Any) -> None:
        ours, theirs = one.with_workers(count), (other or one).with_workers(count)
        key = theirs.key if other else copy_of(ours.key)
        at: dict[str, Any] = {"connections": connections, "counters": counters, "placement": placement} | factors
        if not (ours.has_counters and theirs.has_counters):
            at["counters"] = 1
        up[ours.key], up[key] = ours, theirs
        found = Pair(ours.key, key, **at)
        if replace(found, primary=True) not in pairs:
            pairs[found] = None

    pair(first, None, workers)
    for number, (one, other) in enumerate(couples):
        pair(one, other, workers, primary=number < PRIMARIES)
    for one, other in couples[: options.varied]:
        for count in options.workers[1:]:
            pair(one, other, count)
        for place in options.placements[1:]:
            pair(one, other, workers, placement=place)
        if options.tool == "wrk":
            for number in options.connections[1:]:
                pair(one, other, workers, connections=number)
            for number in options.counters[1:]:
                pair(one, other, workers, counters=number)
    return up, list(pairs)


def blocks(pairs: list[Pair], options: Options) -> Iterator[Pair]:
    """A block of two pairs of slices at a time: everything spread over the whole run, in an order that is drawn."""
    draw = random.Random(options.seed)
    wanted = {pair: _blocks(pair, options) for pair in pairs}
    rounds = max(wanted.values(), default=0)
    for number in range(rounds):
        due = [pair for pair, count in wanted.items() if (number + 1) * count // rounds > number * count // rounds]
        yield from draw.sample(due, len(due))


def _blocks(pair: Pair, options: Options) -> int:
    return -(-(options.slices if pair.primary or pair.control else options.explored) // 2)


def order(pair: Pair, draw: random.Random) -> list[tuple[str, int]]:
    """The four slices of a block: whose it is, and of which of the two pairs."""
    one, other = draw.sample((pair.ours, pair.theirs), 2)
    return [(one, 0), (other, 0), (other, 1), (one, 1)]
