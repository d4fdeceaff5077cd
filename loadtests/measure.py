"""A comparison: every contender up at once, every case once a round, in an order that is drawn anew each round."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from loadtests import audit, machine, tools
from loadtests.contenders import UNLIMITED, Contender, ContenderError, Running, Unavailable
from loadtests.tools import TOOLS, Load, Outcome, ToolError
from loadtests.usage import machine_busy_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The headline benchmark's: `ab -n 10000 -c 10`.
AB_CONNECTIONS = 10

#: What the limit is, and so what the right answer is.
SCENARIOS = {
    "admitted": "every claim is admitted",
    "halted": "every claim is refused",
    "sale": "the counter starts at 0 before every run, and most claims come after it has halted",
}


@dataclass(frozen=True)
class Options:
    """What to compare. The first of `workers`, `connections` and `counters` is the base; the others are swept.

    Every tool measures the base. A sweep varies one of the three and is measured by one tool.
    """

    contenders: tuple[Contender, ...]
    workers: tuple[int, ...]
    connections: tuple[int, ...]
    counters: tuple[int, ...] = (1,)
    tools: tuple[str, ...] = tuple(TOOLS)
    rounds: int = 5
    seconds: int = 3
    requests: int = 10_000
    scenario: str = "admitted"
    limit: int = 100
    seed: int = 0
    #: Leave the peers out of the sweeps.
    sweep_service_only: bool = False
    #: Tools that measure in the first round only.
    once: tuple[str, ...] = ()
    #: Something to read the figures beside.
    note: str = ""
    #: Begin no run after this many seconds; rounds that are not complete stay in the results.
    budget: float | None = None

    @property
    def start_limit(self) -> int:
        return {"admitted": UNLIMITED, "halted": 0, "sale": self.limit}[self.scenario]

    @property
    def sweep_tool(self) -> str | None:
        return next((name for name in ("wrk", "ab -k", "locust", "ab") if name in self.tools), None)


@dataclass(frozen=True)
class Case:
    """One measurement of a round."""

    contender: str
    tool: str
    connections: int
    counters: int = 1


def plan(options: Options) -> tuple[list[Contender], list[Case]]:
    """Who has to be up, and what is measured in each round."""
    base = [contender.with_workers(options.workers[0]) for contender in options.contenders]
    swept = [contender for contender in base if contender.app == "service" or not options.sweep_service_only]
    up = dict.fromkeys(base)
    cases: dict[Case, None] = {}
    for name in options.tools:
        connections = AB_CONNECTIONS if name.startswith("ab") else options.connections[0]
        cases |= dict.fromkeys(Case(contender.key, name, connections) for contender in base)
    if (tool := options.sweep_tool) is not None:
        for workers in options.workers[1:]:
            more = [contender.with_workers(workers) for contender in swept]
            up |= dict.fromkeys(more)
            cases |= dict.fromkeys(Case(contender.key, tool, options.connections[0]) for contender in more)
        for connections in options.connections[1:]:
            cases |= dict.fromkeys(Case(contender.key, tool, connections) for contender in swept)
    if "wrk" in options.tools:
        named = [contender for contender in base if contender.is_service and contender.store != "memory"]
        for counters in options.counters[1:]:
            cases |= dict.fromkeys(Case(contender.key, "wrk", options.connections[0], counters) for contender in named)
    return list(up), list(cases)


@dataclass
class Results:
    """All that a comparison found; what results.json holds."""

    options: dict[str, Any]
    machine: dict[str, Any]
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    #: What went wrong, a line each: a contender or tool that was asked for gave no figure.
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
        self.up: dict[str, Running] = {}
        self._dead: set[str] = set()
        self._begun = 0.0

    def run(self) -> Results:
        """Measure. Ctrl-C and SIGTERM end it early, without losing what was measured or leaving anything running."""
        self._begun = time.monotonic()
        self.results.started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        contenders, cases = plan(self.options)
        try:
            with on_signals(self.interrupt):
                self._audit(contenders)
                self.start(contenders)
                self._warm_up()
                self.measure(cases)
        except KeyboardInterrupt:
            self.results.interrupted = True
        finally:
            with on_signals(signal.SIG_IGN), ThreadPoolExecutor(8) as pool:  # a second Ctrl-C doesn't end this
                list(pool.map(Running.close, self.up.values()))
        self.results.seconds = time.monotonic() - self._begun
        return self.results

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

    def _audit(self, contenders: list[Contender]) -> None:
        """Each contender that is measured by every tool, started for this alone."""
        audited = [contender for contender in contenders if contender.workers == self.options.workers[0]]
        self._progress.phase("Auditing", len(audited))
        for contender in audited:
            self._step(f"does {contender.key} admit exactly {self.options.limit}?")
            try:
                with Running(contender, self.options.limit) as running:
                    found = audit.audit(running.port, self.options.limit)
            except Unavailable as missing:
                self.results.skipped.append(f"{contender.name}: {missing}")
                self._progress.trouble(f"skipped {contender.name}: {missing}")
                self._dead.add(contender.name)
                continue
            except ContenderError as error:
                self._error(f"{contender.key}: {error}")
                self._dead.add(contender.key)
                continue
            record = found.to_json(contender)
            self.results.audits[contender.key] = record
            if contender.is_service and contender.synced and record["verdict"] != "exact":
                self._error(f"{contender.key}: {record['verdict']}")

    def start(self, contenders: list[Contender]) -> None:
        alive = [contender for contender in contenders if not {contender.key, contender.name} & self._dead]
        self._progress.phase("Starting", len(alive))
        for contender in alive:
            self._step(contender.key)
            try:
                running = Running(contender, self.options.start_limit)
                self.up[contender.key] = running
                if contender.is_service and contender.store != "memory":
                    _create_counters(running, max(self.options.counters))
            except (Unavailable, ContenderError, OSError) as error:
                self._error(f"{contender.key}: {error}")
                self._drop(contender.key)
                continue
            self.results.contenders[contender.key] = {
                **asdict(contender),
                "name": contender.name,
                "command": " ".join(contender.command(running.port)),
                "store_version": running.store.version() if running.store else "",
            }

    def _drop(self, key: str) -> None:
        self._dead.add(key)
        if (running := self.up.pop(key, None)) is not None:
            running.close()

    def _warm_up(self) -> None:
        """Load on every contender that is not counted."""
        tool = self.options.sweep_tool
        self._progress.phase("Warming up", len(self.up))
        for key, running in list(self.up.items()):
            self._step(key)
            audit.warm_up_reading(running.port)
            if tool is None or self.options.scenario == "sale":
                continue
            load = Load(AB_CONNECTIONS, min(self.options.requests, 2000), 1)
            with contextlib.suppress(ToolError):  # it will say so again when it counts
                tools.run(TOOLS[tool], running.url, load, check=False)

    def measure(self, cases: list[Case]) -> None:
        """The rounds, each in an order of its own."""
        draw = random.Random(self.options.seed)
        single = sum(case.tool in self.options.once for case in cases)
        self._progress.phase("Measuring", single + (len(cases) - single) * self.options.rounds)
        for number in range(1, self.options.rounds + 1):
            due = [case for case in cases if number == 1 or case.tool not in self.options.once]
            for case in draw.sample(due, len(due)):
                if self.options.budget and time.monotonic() - self._begun > self.options.budget:
                    self.results.skipped.append(f"what was left from round {number} on: the time was up")
                    return
                self._step(f"round {number}: {case.tool} on {case.contender}, {case.connections} connections")
                if self.is_up(case.contender):
                    self.measure_case(case, number)

    def is_up(self, contender: str) -> bool:
        return contender in self.up

    def measure_case(self, case: Case, number: int) -> None:
        running = self.up[case.contender]
        try:
            run = {**asdict(case), "round": number, **self._figures(case, running)}
        except ToolError as error:
            self._error(f"{case.contender}, round {number}: {error}")
            if not running.alive:
                self._lost(case, number)
        except ContenderError as error:
            self._error(f"{case.contender}, round {number}: {error}")
            self._drop(case.contender)
        else:
            self.results.runs.append(run)
            self._progress.measured(run)

    def _lost(self, case: Case, number: int) -> None:
        self._error(f"{case.contender}, round {number}: it ended: {self.up[case.contender].last_words()}")
        self._drop(case.contender)

    def _figures(self, case: Case, running: Running) -> dict[str, Any]:
        """One run, with what it cost the server, the store and the machine. Raises ContenderError, ToolError."""
        if self.options.scenario == "sale":
            running.reset()
            audit.warm_up_reading(running.port)
        store = running.store
        load = Load(case.connections, self.options.requests, self.options.seconds, case.counters)
        before, store_before = running.usage(), store.usage() if store else None
        commands_before = store.commands() if store else None
        busy, clock = machine_busy_seconds(), time.monotonic()
        outcome = tools.run(TOOLS[case.tool], running.url, load, check=running.contender.counts)
        seconds, busy = time.monotonic() - clock, machine_busy_seconds() - busy
        after, store_after = running.usage(), store.usage() if store else None
        commands = store.commands() if store else None
        if not running.alive:
            raise ContenderError(f"it ended: {running.last_words()}")
        if not after.same_processes(before):
            raise ContenderError("a worker ended while it was measured")
        cpu = after.cpu_since(before)
        store_cpu = store_after.cpu_since(store_before) if store_after and store_before else 0.0
        return {
            **outcome_figures(outcome),
            "failures": outcome.failures + unexpected(outcome, self.options.scenario, running.contender),
            "admitted": outcome.requests - outcome.non_2xx,
            "cpu_us": cpu / outcome.requests * 1e6,
            "store_cpu_us": store_cpu / outcome.requests * 1e6 if store else None,
            "switches": after.switches_since(before) / outcome.requests,
            "resident_mb": after.resident_mb,
            "worker_mb": after.worker_mb,
            "store_commands": (
                (commands - commands_before) / outcome.requests * 1000
                if commands is not None and commands_before is not None
                else None
            ),
            "machine_cores": busy / seconds,
            "other_cores": max(0.0, busy - cpu - store_cpu - outcome.generator_seconds) / seconds,
        }


def outcome_figures(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {
        "requests_per_second": outcome.requests_per_second,
        "generator_saturated": outcome.generator_saturated,
    }


def unexpected(outcome: Outcome, scenario: str, contender: Contender) -> int:
    """Answers whose status can't be right: refusals where everything is admitted, admissions where all is halted."""
    if scenario == "admitted" or not contender.counts:
        return outcome.non_2xx
    if scenario == "halted":
        return outcome.requests - outcome.non_2xx
    return 0


def _create_counters(running: Running, counters: int) -> None:
    """The counters `lab-1` to `lab-N` of wrk.lua, when there is more than one."""
    body = json.dumps({"limit": running.limit}).encode()
    headers = {"Authorization": f"Bearer {running.token}", "Content-Type": "application/json"}
    for number in range(1, counters + 1 if counters > 1 else 1):
        url = f"{running.url}/counters/lab-{number}"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="PUT"), timeout=10):
            pass


@contextlib.contextmanager
def on_signals(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """Ctrl-C and SIGTERM are handled so."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
