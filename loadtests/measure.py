"""A comparison: every contender up at once, the slices of two that are compared next to each other."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from loadtests import audit, design, machine, tools
from loadtests.design import Options, Pair, plan
from loadtests.meter import Meter
from loadtests.placement import PLACEMENTS, affinity
from loadtests.revisions import resolve
from loadtests.rig.processes import Unavailable
from loadtests.running import ContenderError, Elsewhere, Running, open_contender
from loadtests.statistics import MOST, Ratio, enough, ratio
from loadtests.tools import TOOLS, Load, Outcome, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from loadtests.contenders import Contender

#: Seconds in which claims whose client is gone have been counted, or have given back what nobody got.
SETTLED = 2.0


@dataclass
class Results:
    """All that a comparison found; what results.json holds."""

    options: dict[str, Any]
    machine: dict[str, Any]
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The pairs, in the order of the plan; a run says by `pair` which one it belongs to.
    pairs: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    #: What went wrong, a line each.
    errors: list[str] = field(default_factory=list)
    #: What was left out because it isn't here, a line each.
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False
    started: str = ""
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Results:
        return cls(**json.loads(text))

    def ratio(self, pair: int, figure: str) -> Ratio | None:
        """Ours over theirs, slice by slice."""
        sides: dict[str, dict[int, float]] = {"ours": {}, "theirs": {}}
        for run in self.runs:
            if run["pair"] == pair and run[figure] is not None:
                sides[run["side"]][run["slice"]] = run[figure]
        return ratio(sides["ours"], sides["theirs"])


class Progress(Protocol):
    """Who is told what happens."""

    def phase(self, text: str, steps: int) -> None: ...

    def step(self, text: str) -> None: ...

    def measured(self, run: dict[str, Any]) -> None: ...

    def trouble(self, text: str) -> None: ...


class Lab:
    """Runs a comparison. `results` is right at any time, so that an interrupted run keeps what it has measured."""

    def __init__(self, options: Options, progress: Progress, *, skipped: list[str] | None = None) -> None:
        self.options = options
        self.results = Results(asdict(options), machine.describe(), skipped=skipped or [])
        self._progress = progress
        self.up: dict[str, Running | Elsewhere] = {}
        self._dead: set[str] = set()
        self._placed: dict[str, str] = {}
        #: By URL, how many claims of the run before may be counted yet: their clients didn't wait for them.
        self._late: dict[str, int] = {}
        self._begun = 0.0

    def run(self) -> Results:
        """Measure. Ctrl-C and SIGTERM end it early, without losing what was measured or leaving anything running."""
        self._begun = time.monotonic()
        self.results.started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        contenders, pairs = self.plan()
        self.results.pairs = [asdict(pair) | {"name": pair.name, "control": pair.control} for pair in pairs]
        try:
            with on_signals(self.interrupt):
                self._audit(contenders)
                self.start(contenders)
                self._warm_up()
                self.measure(pairs)
        except KeyboardInterrupt:
            self.results.interrupted = True
        finally:
            with on_signals(signal.SIG_IGN), ThreadPoolExecutor(8) as pool:  # a second Ctrl-C doesn't end this
                list(pool.map(lambda running: running.close(), self.up.values()))
        self.results.seconds = time.monotonic() - self._begun
        return self.results

    def plan(self) -> tuple[dict[str, Contender], list[Pair]]:
        """Who has to be up, by key, and the pairs that are compared."""
        return plan(self.options)

    def interrupt(self, *_: object) -> None:
        self.results.interrupted = True
        raise KeyboardInterrupt

    def _step(self, text: str) -> None:
        """Go on, unless an interrupt was lost: in what it runs after a fork, Python ignores every exception."""
        if self.results.interrupted:
            raise KeyboardInterrupt
        self._progress.step(text)

    def _error(self, text: str) -> None:
        self.results.errors.append(text)
        self._progress.trouble(text)

    def _audit(self, contenders: dict[str, Contender]) -> None:
        """Each contender at the base, started for this alone."""
        audited = self.audited(contenders)
        self._progress.phase("Auditing", len(audited))
        for contender in audited.values():
            self._step(f"is {contender.key} exact?")
            try:
                with open_contender(contender, self.options.limit) as running:
                    found = audit.audit(running)
            except Unavailable as missing:
                self.results.skipped.append(f"{contender.name}: {missing}")
                self._progress.trouble(f"skipped {contender.name}: {missing}")
                self._dead.add(contender.name)
                continue
            except (ContenderError, OSError) as error:
                self._error(f"{contender.key}: {error}")
                self._dead.add(contender.key)
                continue
            self.results.audits[contender.key] = asdict(found) | {"limit": found.limit, "verdict": found.verdict}
            if contender.exact and found.faults:
                self._error(f"{contender.key}: {found.verdict}")

    def audited(self, contenders: Mapping[str, Contender]) -> dict[str, Contender]:
        base = self.options.workers[0]
        return {c.key: c for c in contenders.values() if c.counts and (c.elsewhere or c.workers == base)}

    def start(self, contenders: dict[str, Contender]) -> None:
        alive = {key: c for key, c in contenders.items() if not {c.key, c.name} & self._dead}
        self._progress.phase("Starting", len(alive))
        for key, contender in alive.items():
            self._step(key)
            try:
                running = open_contender(contender, self.options.start_limit)
                self.up[key] = running
                if contender.has_counters and (counters := max(self.options.counters)) > 1:
                    for name in named(counters):
                        running.put(name, running.limit)
            except (Unavailable, ContenderError, OSError) as error:
                self._error(f"{key}: {error}")
                self._drop(key)
                continue
            self.results.contenders[key] = {
                **asdict(contender),
                "name": contender.name,
                "command": " ".join(running.command),
                "commit": resolve(contender.revision) if contender.revision else "",
                "store_version": running.store.version() if running.store else "",
            }

    def _drop(self, key: str) -> None:
        self._dead.add(key)
        if (running := self.up.pop(key, None)) is not None:
            running.close()

    def _warm_up(self) -> None:
        """Load on every contender that is not counted."""
        self._progress.phase("Warming up", len(self.up))
        for key, running in list(self.up.items()):
            self._step(key)
            audit.warm_up_reading(running.at)
            self.claimed_by(running, design.AB_CONNECTIONS)
            if self.options.scenario != "sale":
                load = Load(design.AB_CONNECTIONS, min(self.options.requests, 2000), 1)
                with contextlib.suppress(ToolError):  # it will say so again when it counts
                    tools.run(TOOLS[self.options.tool], running.url, load)

    def measure(self, pairs: list[Pair]) -> None:
        """The blocks that are planned; then more of the primary comparisons, until they are as narrow as asked for."""
        planned = list(design.blocks(pairs, self.options))
        self._progress.phase("Measuring", len(planned))
        done = dict.fromkeys(pairs, 0)
        draw = random.Random(self.options.seed)
        for pair in self._until_time(iter(planned)):
            self._block(pair, pairs.index(pair), done[pair], draw)
            done[pair] += 1
        if self.options.width is not None:
            longer = [pair for pair in pairs if pair.primary or pair.control]
            for pair in self._until_time(self._more(longer, pairs, self.options.width)):
                self._block(pair, pairs.index(pair), done[pair], draw)
                done[pair] += 1

    def _until_time(self, due: Iterator[Pair]) -> Iterator[Pair]:
        for pair in due:
            if self.options.minutes and time.monotonic() - self._begun > 60 * self.options.minutes:
                self.results.skipped.append("what was left of the slices: the time was up")
                return
            self._step(pair.name)
            yield pair

    def _more(self, longer: list[Pair], pairs: list[Pair], width: float) -> Iterator[Pair]:
        """Rounds of all that are primary, to `MOST` slices, while one of them is too wide."""
        for _ in range(self.options.slices, MOST, 2):
            ratios = [self.results.ratio(pairs.index(pair), "requests_per_second") for pair in longer]
            if enough(ratios, width):
                return
            yield from longer

    def is_up(self, key: str) -> bool:
        return key in self.up

    def _block(self, pair: Pair, number: int, block: int, draw: random.Random) -> None:
        for key, half in design.order(pair, draw):
            if self.is_up(pair.ours) and self.is_up(pair.theirs):
                self.measure_slice(pair, number, key, 2 * block + half)

    def measure_slice(self, pair: Pair, number: int, key: str, turn: int) -> None:
        running = self.up[key]
        where = {"pair": number, "side": "ours" if key == pair.ours else "theirs", "key": key, "slice": turn}
        try:
            run = {**where, "at": time.monotonic() - self._begun, **self._figures(pair, running, key)}
        except ToolError as error:
            self._error(f"{key}, slice {turn}: {error}")
            if not running.alive:
                self._error(f"{key}, slice {turn}: it ended: {running.last_words()}")
                self._drop(key)
        except (ContenderError, OSError) as error:
            self._error(f"{key}, slice {turn}: {error}")
            self._drop(key)
        else:
            self.results.runs.append(run)
            self._progress.measured(run)
            if run["failures"]:
                self._error(f"{key}, slice {turn}: {run['failures']} failed requests or wrong statuses")
            if run["unbalanced"]:
                self._error(f"{key}, slice {turn}: {run['unbalanced']}")

    def _figures(self, pair: Pair, running: Running | Elsewhere, key: str) -> dict[str, Any]:
        """One slice, with what it cost the server, the store and the machine. Raises ContenderError, ToolError."""
        placement = PLACEMENTS[pair.placement]
        if self.options.scenario == "sale":
            running.reset()
            audit.warm_up_reading(running.at)
            self._late[running.url] = 0
        if self._placed.get(key, "free") != placement.name:
            running.place(placement.server, placement.store)
            self._placed[key] = placement.name
        counters = named(pair.counters)
        readings = sum_of(running, counters)
        load = Load(pair.connections, self.options.requests, self.options.seconds, pair.counters)
        meter = Meter(running)
        outcome = tools.run(TOOLS[self.options.tool], running.url, load, prefix=placement.prefix())
        cost = meter.read(outcome.requests, outcome.generator_seconds)
        answered = outcome.requests - outcome.non_2xx
        return {
            **outcome_figures(outcome),
            **cost,
            "failures": outcome.failures + unexpected(outcome, self.options.scenario, running.contender),
            "admitted": answered,
            "unbalanced": self.unbalanced(running, counters, readings, answered, pair.connections),
            **affinities(running),
        }

    def claimed_by(self, running: Running | Elsewhere, connections: int) -> None:
        """A run that isn't held against the counter leaves so many claims that nobody waited for."""
        self._late[running.url] = connections

    def unbalanced(
        self, running: Running | Elsewhere, counters: list[str], before: int | None, answered: int, connections: int
    ) -> str:
        """Whatever tool asked: what the counters moved, less what was answered 2xx, lies between 0 and the connections.

        Nobody waited for the last claim of each; of the run before, too, some may only be counted now. Returns what
        is wrong, or nothing.
        """
        if before is None:
            return ""
        deadline = time.monotonic() + SETTLED
        while True:
            after = sum_of(running, counters)
            assert after is not None
            more = after - before - answered
            if 0 <= more <= connections + self._late.get(running.url, 0):
                self._late[running.url] = max(0, connections - more)
                return ""
            if time.monotonic() > deadline:
                return f"the counter moved by {after - before}, {answered} claims were answered as admitted"
            time.sleep(0.05)


def named(counters: int) -> list[str]:
    """The counters that wrk.lua claims from."""
    return [f"lab-{number}" for number in range(1, counters + 1)] if counters > 1 else ["default"]


def sum_of(running: Running | Elsewhere, counters: list[str]) -> int | None:
    """What these counters read together, once no worker holds a lease; None where nobody could say."""
    if not running.contender.exact:
        return None
    deadline = time.monotonic() + SETTLED
    while True:
        held = running.held()  # also by a worker whose time has been over for long
        readings = [running.read(name) or {"count": 0} for name in counters]
        if not (held or any(reading.get("leased") for reading in readings)) or time.monotonic() > deadline:
            return sum(int(reading["count"]) for reading in readings)
        time.sleep(0.02)


def affinities(running: Running | Elsewhere) -> dict[str, str]:
    """The cores of server and store, as the kernel says; nothing of a service elsewhere."""
    if not isinstance(running, Running):
        return {"server_affinity": "", "store_affinity": ""}
    store = running.store
    return {"server_affinity": affinity(running.pid), "store_affinity": affinity(store.pids[0]) if store else ""}


def outcome_figures(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {
        "requests_per_second": outcome.requests_per_second,
        "generator_share": outcome.generator_share,
    }


def unexpected(outcome: Outcome, scenario: str, contender: Contender) -> int:
    """Answers whose status can't be right: refusals where everything is admitted, admissions where all is halted."""
    if scenario == "admitted" or not contender.counts:
        return outcome.non_2xx
    if scenario == "halted":
        return outcome.requests - outcome.non_2xx
    return 0


@contextlib.contextmanager
def on_signals(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """Ctrl-C and SIGTERM are handled so."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
