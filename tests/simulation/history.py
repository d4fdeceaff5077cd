"""What happened: every operation with its start, its end and its answer, and what the workers' journals were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pythonricing.counting.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.model import Resolution, Run
    from tests.simulation.world import World


class Operation:
    """What somebody asked of a worker.

    `arrived` is when the worker took it, `decided` when and `decision` what it answered, `end` when whoever asked knew,
    and `answer` what. An answer is a word and what belongs to it; None, "reset" and "left" say that nobody knows.
    """

    __slots__ = (
        "actor",
        "answer",
        "arrived",
        "asked",
        "claimant",
        "decided",
        "decision",
        "effect",
        "end",
        "got",
        "hold",
        "key",
        "kind",
        "knew",
        "limit",
        "name",
        "rules",
        "runs",
        "size",
        "start",
        "worker",
    )

    def __init__(self, kind: str, actor: str, worker: str, name: str, start: float) -> None:
        self.kind = kind
        self.actor = actor
        self.worker = worker
        self.name = name
        self.start = start
        self.size = 1
        self.key: str | None = None
        self.limit: int | None = None
        #: The other rules of a counter that is put: each, every, zone.
        self.rules: tuple[int, str, str] = (0, "", "")
        #: A claim's: for how many seconds it is to be on hold; a word's: which hold it is about, or which numbers.
        self.hold: int | str = 0
        self.runs: tuple[Run, ...] = ()
        self.claimant = ""
        #: The hold that was made, and the Unix second at which it expires; and how many numbers the store gave back.
        self.got = ("", 0)
        self.effect = 0
        self.arrived: float | None = None
        #: When the heart was asked, and the last change of the counter that it knew of then.
        self.asked: float | None = None
        self.knew = 0
        self.decided: float | None = None
        self.decision: tuple[Any, ...] | None = None
        self.end: float | None = None
        self.answer: tuple[Any, ...] | None = None

    @property
    def admitted(self) -> bool:
        return self.answer is not None and self.answer[0] == "admitted"

    @property
    def unknown(self) -> bool:
        return self.answer is None or self.answer[0] in ("reset", "left")

    def __str__(self) -> str:
        what = {"claim": f"claim {self.size}", "put": f"put {self.limit} {self.rules}"}.get(self.kind, self.kind)
        what += f" for {self.claimant}" * (self.claimant != "") + f" hold {self.hold}" * (self.hold != 0)
        what += f" {self.runs}" * (self.runs != ()) + f" got {self.got}" * (self.got[0] != "")
        key = f" key={self.key}" if self.key else ""
        end = "…" if self.end is None else f"{self.end:.6f}"
        answer = "?" if self.answer is None else " ".join(map(str, self.answer))
        return f"{self.start:.6f}-{end} {self.actor} → {self.worker} {self.name}: {what}{key}: {answer}"


class Grant(NamedTuple):
    """Numbers that the store gave to a worker's batch, `low` to `high`, and when it had been `sent`.

    Or that it `lent`, under a `change` of an operator.
    """

    time: float
    worker: str
    name: str
    low: int
    high: int
    era: tuple[int, int]
    sent: float
    lent: bool = False
    change: int = 0
    #: Whether the batch got numbers that don't follow each other.
    scattered: bool = False


class Objection(Exception):
    """A promise was broken: the rule's name, the counter and what happened."""

    def __init__(self, rule: str, name: str, text: str) -> None:
        super().__init__(f"{rule}: {name}: {text}")
        self.rule = rule
        self.name = name
        self.text = text


class History:
    """All that the checker judges, and a trace of it that people can read."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.operations: list[Operation] = []
        self.grants: list[Grant] = []
        #: By worker and counter: when, and which numbers, as (request_count, size).
        self.settled: dict[tuple[str, str], list[tuple[float, int, int]]] = {}
        self.orphaned: dict[tuple[str, str], list[tuple[float, int, int]]] = {}
        #: By worker and counter: since when the batch given up had been sent.
        self.in_doubt: dict[tuple[str, str], list[float]] = {}
        #: By worker and counter: when which run of a lease came back to the store.
        self.returned: dict[tuple[str, str], list[tuple[float, int, int]]] = {}
        #: By worker and counter: what the journal was told of holds that were resolved, of numbers that were given back,
        #: and how many numbers expired; and how many of these the store told the heart.
        self.resolved: dict[tuple[str, str], list[Resolution]] = {}
        self.given_back: dict[tuple[str, str], list[tuple[tuple[Run, ...], int]]] = {}
        self.expired: dict[tuple[str, str], int] = {}
        self.told_expired: dict[tuple[str, str], int] = {}
        self.told_resolved: dict[tuple[str, str], int] = {}
        #: By counter: when numbers were given back that were on leases, and which ones.
        self.cut: dict[str, list[tuple[float, set[int]]]] = {}
        #: By counter: when it was reset, deleted or renewed.
        self.resets: dict[str, list[float]] = {}
        #: By counter: when the store heard that it had lost something, and forgot what was free and leased.
        self.forgotten: dict[str, list[float]] = {}
        #: By worker: when a connection of its was gone, and by worker and counter, when it heard of a loss.
        self.breaks: dict[str, list[float]] = {}
        self.heard: dict[tuple[str, str], list[float]] = {}
        #: When a worker was asked to stop.
        self.stopped: dict[str, float] = {}
        #: When a worker was killed.
        self.killed: dict[str, float] = {}
        #: By process name: from when to when it was paused.
        self.pauses: dict[str, list[tuple[float, float]]] = {}
        #: Since when nothing may fail any more.
        self.calm = float("inf")
        self.objections: list[Objection] = []
        self.trace: list[tuple[float, str, str]] = []

    def begin(self, kind: str, actor: str, worker: str, name: str) -> Operation:
        operation = Operation(kind, actor, worker, name, self._world.time())
        self.operations.append(operation)
        return operation

    @property
    def now(self) -> float:
        return self._world.time()

    def note(self, name: str, text: str) -> None:
        """Add a line to the trace; `name` is the counter that it is about, or empty for all."""
        self.trace.append((self._world.time(), name, text))

    def object(self, rule: str, name: str, text: str) -> None:
        self.objections.append(Objection(rule, name, text))
        self.note(name, f"OBJECTION {rule}: {text}")


class Recorder(Journal):
    """The journal of a worker."""

    def __init__(self, history: History, world: World, worker: str, sent_at: Callable[[str], float]) -> None:
        self._history = history
        self._world = world
        self._worker = worker
        self._sent_at = sent_at

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        now = self._world.time()
        found = self._history.settled.setdefault((self._worker, name), [])
        found += [(now, count, size) for count, size in admitted]

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        now = self._world.time()
        found = self._history.orphaned.setdefault((self._worker, name), [])
        found += [(now, count, size) for count, size in admitted]
        self._history.note(name, f"{self._worker} journal: orphaned {list(admitted)}")

    def resolved(self, name: str, limit: int, resolution: Resolution) -> None:
        self._history.resolved.setdefault((self._worker, name), []).append(resolution)

    def given_back(self, name: str, runs: Sequence[Run], numbers: int) -> None:
        self._history.given_back.setdefault((self._worker, name), []).append((tuple(runs), numbers))

    def expired(self, name: str, numbers: int) -> None:
        whose = (self._worker, name)
        self._history.expired[whose] = self._history.expired.get(whose, 0) + numbers

    def in_doubt(self, name: str, claims: int) -> None:
        self._history.in_doubt.setdefault((self._worker, name), []).append(self._sent_at(name))
        self._history.note(name, f"{self._worker} journal: in doubt, {claims} claims")

    def lost(self, name: str, seen: Any) -> None:
        self._history.note(name, f"{self._worker} journal: lost, had seen {seen}")

    def found(self, name: str) -> None:
        self._history.note(name, f"{self._worker} journal: found")

    def raised(self, name: str, before: int, after: int) -> None:
        self._history.note(name, f"{self._worker} journal: raised from {before} to {after}")

    def failed(self, name: str, error: Exception) -> None:
        self._history.note(name, f"{self._worker} journal: failed, {error}")
