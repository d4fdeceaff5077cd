"""What somebody who chooses a server asks beside its speed: Granian and uvicorn, question by question, in one table."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from loadtests import tools
from loadtests.contenders import UNLIMITED, Contender
from loadtests.curves import offer
from loadtests.design import copy_of
from loadtests.latencies import Latencies
from loadtests.measure import Lab, outcome_figures, sum_of, unexpected
from loadtests.meter import Meter
from loadtests.rig.processes import Unavailable, spawn, stop
from loadtests.rig.waiting import wait_until
from loadtests.running import ContenderError, Running
from loadtests.statistics import Ratio, ratio
from loadtests.stores import Valkey
from loadtests.tools import TOOLS, Load, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from loadtests.design import Options, Pair
    from loadtests.measure import Progress, Results
    from loadtests.open_model.outcome import Open

SERVERS = ("granian", "uvicorn")
#: Requests a second wherever a rate is offered: far below the knee, so that it is the circumstance that shows.
RATE = 500
#: New connections a second: each costs a generator in Python many times what a request on a kept one does.
FRESH = 200
#: Of a production's size, where the machine allows it.
WORKERS = 16
READERS, PIPELINED = 100, 64
HOGS = 2

FIGURES = {
    "p99_ms": ("p99 ms", 2),
    "cpu_us": ("server CPU µs a request", 0),
    "requests_per_second": ("requests/s at capacity", 0),
    "worker_mb": ("MB a worker", 1),
    "answered_s": ("s until it answers", 2),
    "ready_s": ("s until every worker is ready", 2),
    "longest_ms": ("longest ms", 0),
    "failed": ("requests failed", 0),
}


@dataclass(frozen=True)
class Question:
    """What is asked of both servers: how they run, how that is measured, and which figures say it."""

    text: str
    contender: str
    ask: Callable[[Chooser, Running], dict[str, Any]]
    figures: tuple[str, ...]
    servers: tuple[str, ...] = SERVERS
    #: Whether Granian is compared with a copy of itself.
    control: bool = False

    def keys(self, workers: int) -> list[str]:
        """Of one side, and of the other where there is one."""
        keys = [Contender.parse(self.contender.format(each)).with_workers(workers).key for each in self.servers]
        return [*keys, copy_of(keys[0])] if self.control else keys


def _at_rate(rate: int, *more: str) -> Callable[[Chooser, Running], dict[str, Any]]:
    return lambda lab, running: lab.offered(running, rate, *more)


def _besides(others: Callable[[Running], contextlib.AbstractContextManager[None]]) -> Any:
    def ask(lab: Chooser, running: Running) -> dict[str, Any]:
        with others(running):
            return lab.offered(running, RATE, prefix=first_served() if others is hogs else ())

    return ask


def _capacity(tool: str, connections: int) -> Callable[[Chooser, Running], dict[str, Any]]:
    return lambda lab, running: lab.capacity(running, tool, connections)


@contextlib.contextmanager
def slow_readers(running: Running) -> Iterator[None]:
    """Connections that ask for a megabyte of answers each, and read a kilobyte of it."""
    request = f"GET / HTTP/1.1\r\nHost: {running.at.host}\r\n\r\n".encode() * PIPELINED
    with contextlib.ExitStack() as stack:
        for _ in range(READERS):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.settimeout(30)
            reader.connect((running.at.host, running.at.port))
            reader.sendall(request)
            reader.recv(1024)
        yield


@contextlib.contextmanager
def hogs(running: Running) -> Iterator[None]:
    """Processes that never rest, one for each of two cores."""
    busy = [spawn([sys.executable, "-c", "while True: pass"], output=subprocess.DEVNULL) for _ in range(HOGS)]
    try:
        yield
    finally:
        for process in busy:
            stop(process)


@cache
def first_served() -> tuple[str, ...]:
    """What goes before a command that should not have to wait for a core; nothing where that isn't allowed."""
    words = ("chrt", "--fifo", "1")
    with contextlib.suppress(OSError):
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    return ()


QUESTIONS = (
    Question("A/A control: kept connections", "{}+redis", _at_rate(RATE), ("p99_ms", "cpu_us"), ("granian",), True),
    Question(f"kept connections, {RATE}/s", "{}+redis", _at_rate(RATE), ("p99_ms", "cpu_us")),
    Question(f"opened and closed, {FRESH}/s", "{}+redis", _at_rate(FRESH, "--fresh"), ("p99_ms", "cpu_us")),
    Question(f"TLS, kept connections, {RATE}/s", "{}+redis[tls]", _at_rate(RATE), ("p99_ms", "cpu_us")),
    Question("TLS, kept connections", "{}+redis[tls]", _capacity("wrk", 32), ("requests_per_second", "cpu_us")),
    Question(f"TLS, a new one each, {FRESH}/s", "{}+redis[tls]", _at_rate(FRESH, "--fresh"), ("p99_ms", "cpu_us")),
    Question(
        "HTTP/2, 8 connections of 16 streams",
        "{}+redis[--http=auto]",
        _capacity("h2load", 8),
        ("requests_per_second",),
        ("granian",),
    ),
    Question("answers of 16 KiB", "large+{}", _capacity("wrk", 32), ("requests_per_second", "cpu_us")),
    Question(f"beside {READERS} slow readers, {RATE}/s", "large+{}", _besides(slow_readers), ("p99_ms", "worker_mb")),
    Question("a handler that waits 10 ms", "waits+{}", _capacity("wrk", 256), ("requests_per_second", "cpu_us")),
    Question(f"beside {HOGS} processes that hog the cores, {RATE}/s", "{}+redis", _besides(hogs), ("p99_ms",)),
    Question(
        f"a graceful restart (SIGHUP), {RATE}/s",
        "{}+redis",
        lambda lab, running: lab.restarted(running),
        ("p99_ms", "longest_ms", "failed"),
    ),
)
#: Asked of servers that are started for them.
START, MEMORY = f"from start to ready, {WORKERS} workers", "memory under {}/s, {}"


class Starting(Running):
    """Notes when its last worker has reached the store, instead of waiting until it is quiet."""

    ready_after = 0.0

    def _wait_until_quiet(self) -> None:
        wait_until(lambda: self._connected() >= self.contender.workers, "every worker to reach the store")
        self.ready_after = time.monotonic() - self.begun

    def _connected(self) -> int:
        assert isinstance(self.store, Valkey)
        clients = str(self.store.server.run("CLIENT", "LIST")).split()
        return len({word for word in clients if word.startswith("name=pythonricing-")})


class Chooser(Lab):
    """Every question once in each round, in an order that is drawn, the two servers next to each other."""

    def __init__(
        self, options: Options, progress: Progress, memory: float, questions: tuple[Question, ...] = QUESTIONS
    ) -> None:
        super().__init__(options, progress)
        self.workers = options.workers[0]
        #: Seconds of load before memory is read.
        self.memory = memory
        self.questions = [question for question in questions if self._possible(question)]
        self._turn = 0
        minutes = f"{memory / 60:g} minutes" if memory >= 60 else f"{memory:g} s"
        self.results.options |= {"choose": True, "memory": MEMORY.format(RATE, minutes)}
        self.results.options["figures"] = {q.text: q.figures for q in self.questions} | {
            START: ("answered_s", "ready_s"),
            self.results.options["memory"]: ("worker_mb",),
        }

    def _possible(self, question: Question) -> bool:
        needed = {"HTTP/2": "h2load", "TLS, kept": "wrk", "answers": "wrk", "a handler": "wrk"}
        tool = next((tool for words, tool in needed.items() if question.text.startswith(words)), None)
        if tool is None or TOOLS[tool].available():
            return True
        self.results.skipped.append(f"{question.text}: {tool} is not installed: it is in {TOOLS[tool].package}")
        return False

    def plan(self) -> tuple[dict[str, Contender], list[Pair]]:
        names = dict.fromkeys(q.contender.format(server) for q in self.questions for server in q.servers)
        found = [Contender.parse(name).with_workers(self.workers) for name in names]
        up = {contender.key: contender for contender in found}
        copies = {key: up[q.keys(self.workers)[0]] for q in self.questions if q.control for key in q.keys(self.workers)}
        return up | copies, []

    def audited(self, contenders: Mapping[str, Contender]) -> dict[str, Contender]:
        """What is served over TLS or HTTP/2 is the same application."""
        return {key: c for key, c in super().audited(contenders).items() if not c.options}

    def measure(self, pairs: list[Pair]) -> None:
        draw = random.Random(self.options.seed)
        asked: list[Question | None] = [*self.questions, None]
        self._progress.phase("Asking", self.options.slices * len(asked))
        for turn in range(self.options.slices):
            self._turn = turn
            for question in draw.sample(asked, len(asked)):
                if self.options.minutes and time.monotonic() - self._begun > 60 * self.options.minutes:
                    self.results.skipped.append("what was left of the slices: the time was up")
                    break
                self._step(question.text if question else START)
                for number in draw.sample((0, 1), 2):
                    self._ask(question, number)
        self._memory()

    def _ask(self, question: Question | None, number: int) -> None:
        """Of one side: of Granian or uvicorn, or, for the control, of Granian or its copy."""
        if question is None:
            self._keep(START, number, f"{SERVERS[number]}+redis x{WORKERS}", lambda: self.started(SERVERS[number]))
            return
        for key in question.keys(self.workers)[number : number + 1]:
            running = self.up.get(key)
            if isinstance(running, Running):
                self._keep(question.text, number, key, partial(question.ask, self, running))

    def _keep(self, question: str, number: int, key: str, ask: Callable[[], dict[str, Any]]) -> None:
        where = {"question": question, "side": number, "key": key, "slice": self._turn}
        try:
            run = {**where, **ask()}
        except (ToolError, ContenderError, Unavailable, OSError, AssertionError) as error:
            self._error(f"{question}, {key}, slice {self._turn}: {error}")
            return
        self.results.runs.append(run)
        for wrong in filter(None, (run.get("unbalanced"), run.get("wrong"))):
            self._error(f"{question}, {key}, slice {self._turn}: {wrong}")

    def offered(
        self, running: Running, rate: int, *more: str, seconds: float | None = None, prefix: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """In the open model, every answer checked, and the counter held against them. Raises ToolError."""
        before, meter = sum_of(running, ["default"]), Meter(running)
        found = self._offer(running, rate, seconds or self.options.seconds, *more, prefix=prefix)
        cost = meter.read(found.answered, found.generator_seconds)
        lost = found.lost + found.timed_out
        if lost:
            raise ToolError(f"{lost} requests without an answer")
        unbalanced = self.unbalanced(running, ["default"], before, found.admitted, 0)
        return {**cost, "p99_ms": found.p99_ms, "void": found.void, "wrong": found.wrong, "unbalanced": unbalanced}

    def _offer(self, running: Running, rate: int, seconds: float, *more: str, prefix: tuple[str, ...] = ()) -> Open:
        limit = running.limit if running.contender.exact else None
        return offer(running.url, rate, seconds, limit, self.options.seed + self._turn, prefix, *more)

    def capacity(self, running: Running, tool: str, connections: int) -> dict[str, Any]:
        """In a closed loop. Raises ToolError."""
        before, meter = sum_of(running, ["default"]), Meter(running)
        outcome = tools.run(TOOLS[tool], running.url, Load(connections, 0, self.options.seconds))
        cost = meter.read(outcome.requests, outcome.generator_seconds)
        failures = outcome.failures + unexpected(outcome, "admitted", running.contender)
        answered = outcome.requests - outcome.non_2xx
        if failures:
            raise ToolError(f"{failures} failed requests or wrong statuses")
        streams = connections * (16 if tool == "h2load" else 1)
        unbalanced = self.unbalanced(running, ["default"], before, answered, streams)
        return {**outcome_figures(outcome), **cost, "unbalanced": unbalanced}

    def restarted(self, running: Running) -> dict[str, Any]:
        """All workers replaced under load, by the signal that both servers have for it."""
        before, workers = sum_of(running, ["default"]), running.usage().workers
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(self._offer, running, RATE, max(4.0, 4.0 * self.options.seconds))
            wait_until(lambda: load.done() or running.read("default")["count"] > (before or 0), "the load to begin")
            os.kill(running.pid, signal.SIGHUP)
            found = load.result()
        wait_until(lambda: len(running.usage().workers - workers) >= self.workers, "all workers to be replaced")
        wait_until(lambda: not running.usage().workers & workers, "the workers of before to end")
        lost = found.lost + found.timed_out
        refused = sum(count for text, count in found.wrong.items() if text[:1] == "5")
        unbalanced = self.unbalanced(running, ["default"], before, found.admitted, lost)
        return {
            "p99_ms": found.p99_ms,
            "longest_ms": Latencies(found.latencies).largest,
            "failed": lost + refused,
            "void": found.void,
            "wrong": {text: count for text, count in found.wrong.items() if text[:1] != "5"},
            "unbalanced": unbalanced,
        }

    def started(self, server: str) -> dict[str, Any]:
        running = Starting(Contender.parse(f"{server}+redis").with_workers(WORKERS), UNLIMITED)
        with running:
            return {"answered_s": running.answered_after, "ready_s": running.ready_after}

    def _memory(self) -> None:
        """Of both at once, started anew: what a worker has after a time under load."""
        question = self.results.options["memory"]
        seconds = min(10.0, self.memory)
        steps = round(self.memory / seconds)
        self._progress.phase("Memory", steps)
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(SERVERS)) as pool:
            contenders = [Contender.parse(f"{server}+redis").with_workers(self.workers) for server in SERVERS]
            both = [stack.enter_context(Running(contender, UNLIMITED)) for contender in contenders]
            for _ in range(steps):
                self._step(question)
                loads = [pool.submit(self.offered, running, RATE, seconds=seconds) for running in both]
                figures = [load.result() for load in loads]
            for number, (running, found) in enumerate(zip(both, figures, strict=True)):
                self._keep(question, number, running.contender.key, partial(dict, found))


def sides(results: Results, question: str, figure: str) -> tuple[dict[int, float], dict[int, float]]:
    """The slices of both, by their numbers; latencies only where the generator was in time."""
    found: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for run in results.runs:
        if (
            run["question"] == question
            and run.get(figure) is not None
            and not (run.get("void") and figure.endswith("_ms"))
        ):
            found[run["side"]][run["slice"]] = run[figure]
    return found


def compared(results: Results, question: str, figure: str) -> Ratio | None:
    """Granian's over uvicorn's, slice by slice."""
    return ratio(*sides(results, question, figure))


def typical(values: Mapping[int, float], digits: int) -> str:
    """The median, with the least and the greatest of the slices."""
    if not values:
        return "-"
    middle = f"{statistics.median(values.values()):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values.values()):,.{digits}f}, {max(values.values()):,.{digits}f}]"
