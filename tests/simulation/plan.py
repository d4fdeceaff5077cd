"""What a seed makes of the world: who is in it, how they behave, and what goes wrong when.

Swarm testing (Groce et al., "Swarm Testing", ISSTA 2012): a seed draws which kinds of fault there are at all and how
frequent each is, so that a fault is not always drowned in others.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tests.simulation.machine import START

#: Every kind of fault, and how likely it is to be in a history at all.
KINDS = {
    "cut": 0.3,  # a connection is lost, with a part of what is under way
    "silent cut": 0.15,  # ... and its client isn't told
    "trip": 0.35,  # a connection is lost in the middle of its next reply
    "stall up": 0.25,  # what a connection carries to the server is held back
    "stall down": 0.25,  # ... to the worker
    "partition": 0.15,  # a worker and the store don't hear each other, in one direction or both
    "kill": 0.3,  # a worker ends at once
    "stop": 0.2,  # a worker ends in an orderly way
    "pause": 0.2,  # a worker stands still
    "restart": 0.2,  # the store is started again: what was not synced is gone
    "freeze": 0.15,  # the store stands still
    "flush": 0.12,  # FLUSHALL
    "restore": 0.15,  # the store comes back as it was a while ago
    "failover": 0.15,  # a replica takes over with what it has
    "full": 0.1,  # the store is out of memory
    "clock": 0.1,  # the store's clock is stepped
    "outage": 0.05,  # the store is gone for more than an hour
}
#: How likely it is that the network holds back what operators say, for a while and up to three times in a history.
HELD_WORDS = 0.15
#: Seconds of an outage, longer than a batch is sent again, or longer than its receipt lives.
OUTAGES = ((650, 900), (3650, 4200))
#: For how many seconds each lasts, at most.
LASTS = {
    "stall up": 6.0,
    "stall down": 6.0,
    "partition": 6.0,
    "kill": 2.0,
    "stop": 2.0,
    "pause": 4.0,
    "restart": 3.0,
    "freeze": 4.0,
    "restore": 4.0,
    "full": 3.0,
    "held words": 8.0,
}


#: Ends of windows of the calendar: how the counter renews, where, and the first moment of the next one. Among them are
#: the days on which clocks change, one whose midnight comes twice, one that has none, one after a day that was left out,
#: a leap day, and a new year.
TURNS: tuple[tuple[str, str, tuple[int, int, int]], ...] = (
    ("day", "Europe/Berlin", (2024, 3, 31)),
    ("day", "Europe/Berlin", (2024, 10, 28)),
    ("day", "Atlantic/Azores", (2024, 10, 27)),
    ("day", "America/Sao_Paulo", (2018, 11, 4)),
    ("day", "America/Sao_Paulo", (2018, 2, 18)),
    ("day", "Pacific/Apia", (2011, 12, 31)),
    ("day", "Australia/Lord_Howe", (2024, 4, 7)),
    ("day", "", (2024, 2, 29)),
    ("week", "Asia/Kathmandu", (2024, 1, 1)),
    ("week", "", (2024, 2, 26)),
    ("month", "America/New_York", (2024, 3, 1)),
    ("month", "", (2025, 1, 1)),
)


class Fault(NamedTuple):
    """`draws` decide whom it hits and how; a fault is the same whichever others happen."""

    when: float
    kind: str
    seconds: float
    draws: tuple[float, float, float]

    def __str__(self) -> str:
        draws = ", ".join(f"{draw:.3f}" for draw in self.draws)
        return f"{self.when:.6f} {self.kind} for {self.seconds:.3f} s ({draws})"


class Plan:
    """See the module."""

    def __init__(self, seed: int, sales: bool = True) -> None:
        draw = random.Random(f"plan {seed}")
        self.workers = draw.randint(2, 4)
        self.counters = ["default", "seats", "cups"][: draw.randint(2, 3)]
        self.limits = {name: draw.choice((draw.randint(5, 40), draw.randint(40, 200))) for name in self.counters}
        #: The limit that the settings give `default`.
        self.setting = self.limits["default"] if draw.random() < 0.3 else None
        self.halt_cache = draw.choice((0.1, 0.1, 0.5, 0.0))
        self.on_loss = draw.choice(("halt", "halt", "halt", "raise"))
        self.latency = draw.choice((0.0001, 0.001, 0.02))
        self.timeout = 2.0 if self.latency > 0.01 else draw.choice((2.0, 0.5))
        self.spread = self.latency * draw.choice((0.1, 0.5, 2.0))
        self.late = draw.choice((0.3, 0.7, 1.0))
        self.fsync = draw.choice(("always", "everysec"))
        self.clients = draw.randint(4, 12)
        self.claims = max(4, round(200 / self.clients))
        self.think = draw.choice((0.02, 0.1, 0.4))
        self.burst = draw.choice((1, 2, 6))
        self.sizes = draw.choice(((1,), (1, 1, 2, 3), (1, 2, 5, 9)))
        self.keyed = draw.choice((0.0, 0.2, 0.6))
        self.again = draw.choice((0.0, 0.2, 0.5))  # how likely a key is used again later
        self.patience = draw.choice((90.0, 90.0, 3.0, 0.3))
        self.operators = draw.choice((0, 1, 1, 2))
        self.operates = draw.choice((0.2, 1.0, 3.0))  # seconds between an operator's commands
        #: What an operator does, by weight.
        self.words = {word: draw.random() ** 2 for word in ("raise", "lower", "deploy", "reset", "read")}
        self.repairs = draw.choice(("put", "reset", "nothing"))
        self.lag = draw.choice((0.01, 0.3, 2.0))
        #: Seconds of its own demand that a worker takes ahead. Where it does, there is demand, and limits are far away.
        self.lease = 0.0
        self._draw_leases(random.Random(f"lease {seed}"))
        #: Whether anybody sells: how likely claims are on hold, for how many seconds, what becomes of that and after how
        #: many, and how likely somebody asks again; the seconds between give-backs, 0: there are none.
        self.sale = False
        self.held = self.insists = self.returns = self.rethinks = 0.0
        self.hold_seconds: tuple[int, ...] = (1,)
        self.decides = 1.0
        self.choices = dict.fromkeys(("confirm", "part", "release", "leave"), 1.0)
        #: By counter: how many numbers each of so many claimants may have, and how it renews and where.
        self.each: dict[str, int] = {}
        self.claimants = 1
        self.every: dict[str, tuple[str, str]] = {}
        #: What the store's clock is ahead of the world's.
        self.clock = 0.0
        if sales:
            self._draw_sale(random.Random(f"sale {seed}"))
        self.faults = sorted([*self._draw_faults(draw), *self._draw_held_words(random.Random(f"words {seed}"))])
        self.replicated = any(fault.kind == "failover" for fault in self.faults)

    def _draw_leases(self, draw: random.Random) -> None:
        if draw.random() < 0.5:
            return
        self.lease = draw.choice((0.01, 0.1, 0.1))
        self.limits = {name: draw.choice((draw.randint(280, 500), draw.randint(500, 3000))) for name in self.counters}
        self.setting = self.setting and self.limits["default"]
        self.counters = self.counters[: draw.choice((1, 2, 2))]
        self.claims = max(8, round(draw.choice((400, 700)) / self.clients))
        self.think = draw.choice((0.005, 0.01, 0.03))
        self.burst = draw.choice((2, 6))
        self.sizes = draw.choice(((1,), (1, 1, 1, 3), (1, 2, 5, 9)))
        self.keyed = draw.choice((0.0, 0.0, 0.1))
        self.workers = draw.randint(1, 3)
        self.operates = draw.choice((0.1, 0.3, 1.0))

    def _draw_sale(self, draw: random.Random) -> None:
        if draw.random() < 0.25:
            return
        self.sale = True
        self.held = draw.choice((0.0, 0.05, 0.3, 0.9))
        self.hold_seconds = draw.choice(((1,), (1, 2), (1, 3, 600)))
        self.decides = draw.choice((0.05, 0.5, 1.5))
        self.choices = {choice: draw.random() ** 2 for choice in self.choices}
        self.insists = draw.choice((0.0, 0.2, 0.6))
        self.returns = draw.choice((0.0, 0.0, 0.1, 0.5))
        self.rethinks = draw.choice((0.0, 0.1, 0.5))
        self.claimants = draw.randint(1, 8)
        seldom, renews = draw.choice(((0.0, 0.0), (0.5, 0.0), (0.0, 0.6), (0.3, 0.5)))
        for name in self.counters:
            if draw.random() < seldom * (0.3 if self.lease else 1.0):
                self.each[name] = min(draw.choice((1, 4, 12)), self.limits[name])
            if draw.random() < renews:
                self.every[name] = draw.choice((("1s", ""), ("1s", ""), ("2s", ""), ("", "")))
        if self.held or self.every:
            self.think = max(self.think, draw.choice((0.03, 0.1, 0.3)))
        if self.every and draw.random() < 0.5:
            every, zone, moment = draw.choice(TURNS)
            name = draw.choice(list(self.every))
            self.every[name] = (every, zone)
            turn = datetime(*moment, tzinfo=ZoneInfo(zone) if zone else UTC).timestamp()
            self.clock = turn - START / 1e6 - draw.random() * self.claims * self.think

    def _draw_faults(self, draw: random.Random) -> list[Fault]:
        weights = {kind: draw.random() for kind, chance in KINDS.items() if draw.random() < chance}
        span = self.claims * self.think * 1.2 + 0.5
        faults: list[Fault] = []
        for _ in range(draw.choice((0, 2, 4, 8, 12)) if weights else 0):
            kind = draw.choices(list(weights), list(weights.values()))[0]
            if kind == "outage":
                if any(fault.kind == "outage" for fault in faults):
                    continue
                seconds = draw.uniform(*draw.choice(OUTAGES))
            else:
                seconds = LASTS.get(kind, 0.0) * draw.random() ** 2
            faults.append(Fault(draw.random() * span, kind, seconds, (draw.random(), draw.random(), draw.random())))
        return faults

    def _draw_held_words(self, draw: random.Random) -> list[Fault]:
        if not self.operators or draw.random() >= HELD_WORDS:
            return []
        span = self.claims * self.think * 1.2 + 0.5
        return [
            Fault(draw.random() * span, "held words", LASTS["held words"] * draw.random(), (0.0, 0.0, 0.0))
            for _ in range(draw.randint(1, 3))
        ]
