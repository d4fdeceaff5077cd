"""Judges a history: each answer that somebody got, and at its end the books.

An operation whose answer nobody knows may have had its effect or not: it is never the ground of an objection, and
explains whatever it can explain. What the store's data lost, and nobody who spoke had seen, is not promised.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from pythonricing.counting.model import LEASE_RETURN_SECONDS, LEASE_SECONDS
from tests.simulation.resolutions import judge_sales

if TYPE_CHECKING:
    from tests.simulation.history import Grant, Operation
    from tests.simulation.observer import State
    from tests.simulation.scene import Scene

#: Seconds that an answer may take beyond its timeout.
SLACK = 0.3
#: Seconds after which a store may have forgotten a lease that did not come back (see claim.lua).
LEASE_KEPT = 3600


def judge(scene: Scene) -> None:
    """Add what breaks a promise to the history's objections."""
    history = scene.history
    for error in scene.world.errors[:3]:
        history.object("nothing raises", "", error)
    owners = Owners(scene)
    for operation in sorted(history.operations, key=lambda op: (op.end is None, op.end or 0.0)):
        _judge_patience(scene, operation)
        if operation.answer is None:
            continue
        match operation.answer[0]:
            case "admitted":
                owners.judge(operation)
            case "refused":
                _judge_refusal(scene, operation)
            case "reused":
                history.object("one key, one admission", operation.name, str(operation))
            case "error":
                history.object("no errors but the promised ones", operation.name, str(operation))
            case "unavailable" | "lost" | "missing" | "reset" if operation.start >= history.calm:
                history.object("once faults end, everything is well", operation.name, str(operation))
    _judge_keys(scene)
    _judge_books(scene)
    judge_sales(scene)


class Title(NamedTuple):
    """Numbers `low` to `high` that somebody was told to own, and the grants that they can have come from."""

    owner: str
    low: int
    high: int
    grants: list[Grant]


class Owners:
    """Who owns which of the numbers that the store gave."""

    def __init__(self, scene: Scene) -> None:
        self._history = history = scene.history
        self._lost_at = scene.observer.lost_at
        #: By counter and number.
        self._grants: dict[tuple[str, int], list[Grant]] = {}
        for grant in history.grants:
            for number in range(grant.low, grant.high + 1):
                self._grants.setdefault((grant.name, number), []).append(grant)
        #: By counter and era.
        self._owned: dict[tuple[str, tuple[int, int]], list[tuple[Title, Grant]]] = {}
        self._first_use: dict[tuple[str, str], float] = {}
        for op in history.operations:
            if op.key is not None:
                self._first_use.setdefault((op.name, op.key), op.start)

    def judge(self, op: Operation) -> None:
        """An admitted claim owns numbers that were given for it, and nobody else owns one of them."""
        assert op.answer is not None
        _, last, _, *scattered = op.answer
        runs = scattered or [(last - op.size + 1, last)]
        if sum(high - low + 1 for low, high in runs) != op.size or runs[-1][1] != last:
            self._history.object("an answer names what was claimed", op.name, str(op))
        owner = f"{op.actor} at {op.start:.6f}" if op.key is None else f"key {op.key}"
        for low, high in runs:
            grants = [grant for grant in self._grants.get((op.name, low), ()) if self._fits(grant, op, high)]
            title = Title(owner, low, high, grants)
            if not grants:
                self._history.object("numbers come from the store, for this claim", op.name, str(op))
            elif not self._place(title, ()):
                taken = next((other.owner for by in grants for other, _ in self._others(title, by)), "somebody else")
                self._history.object("no number has two owners", op.name, f"{op}, owned by {taken}")

    def _fits(self, grant: Grant, op: Operation, high: int) -> bool:
        """Whether numbers up to `high` can have been given to a claim by this grant, which has the first of them."""
        assert op.end is not None
        if not (high <= grant.high and grant.time <= op.end):
            return False
        if not grant.lent:
            began = op.start if op.key is None else self._first_use[op.name, op.key]
            return began <= grant.time and (op.key is not None or grant.worker == op.worker)
        if op.key is not None or grant.worker != op.worker or op.asked is None:
            return False
        # In its time, and before its worker heard of a loss, of another state, or that the connection was gone; what it
        # heard in the moment in which it asked for the lease, it asked because of.
        ended = [*self._history.breaks.get(op.worker, ()), *self._history.heard.get((op.worker, op.name), ())]
        return (
            op.asked < grant.sent + LEASE_SECONDS
            and (op.knew <= grant.change or op.asked <= grant.time)
            and not any(grant.sent < at < op.asked for at in ended)
        )

    def _place(self, title: Title, moving: tuple[Title, ...]) -> bool:
        """Find a grant for numbers, if need be by finding another one for those who were thought to have its."""
        for grant in title.grants:
            others = self._others(title, grant)
            if any(other in moving for other, _ in others):
                continue
            before = {era: list(owned) for era, owned in self._owned.items()} if others else {}
            owned = self._owned.setdefault((grant.name, grant.era), [])
            for held in others:
                owned.remove(held)
            owned.append((title, grant))
            if all(self._place(other, (*moving, title)) for other, _ in others):
                return True
            self._owned = {era: list(kept) for era, kept in before.items()}
        return False

    def _others(self, title: Title, grant: Grant) -> list[tuple[Title, Grant]]:
        """Who owns some of these numbers by this grant, or by another one between which and this nothing was lost."""
        return [
            (other, by)
            for other, by in self._owned.get((grant.name, grant.era), ())
            if other.owner != title.owner
            and other.low <= title.high
            and title.low <= other.high
            and (by is grant or not self._lost_between(by.time, grant.time))
        ]

    def _lost_between(self, one: float, other: float) -> bool:
        return any(min(one, other) <= at <= max(one, other) for at in self._lost_at)


def _judge_refusal(scene: Scene, op: Operation) -> None:
    """There was no room at some moment while the claim waited, or in a halt cache that may be believed."""
    history, plan = scene.history, scene.plan
    assert op.answer is not None
    assert op.end is not None
    _, count, limit = op.answer
    if count + op.size <= limit:
        history.object("a refusal says why", op.name, str(op))
        return
    began = op.start
    if op.key is not None:
        began = min(other.start for other in history.operations if other.key == op.key and other.name == op.name)
    waited = (
        op.decided is not None
        and op.arrived is not None
        and op.decided - op.arrived >= LEASE_RETURN_SECONDS - SLACK / 10
    )
    for until, state in _states(scene, op.name, began, op.end):
        # What leases may bring back makes room, too; but nobody waits for it longer than it may take.
        out = 0 if waited or scene.observer.clock_stepped else state.out(min(until, op.end))
        if not _room(state, op.size, out):
            return
    # From the worker's memory: of a verdict that it got lately, and after which no operator spoke to it.
    spoken = [
        other.decided
        for other in history.operations
        if other.kind in ("put", "reset", "confirm", "release", "give")
        and other.worker == op.worker
        and other.name == op.name
        and other.decided is not None
        and other.decided <= op.start
        and other.decision is not None
        and other.decision[0] in ("created", "changed", "deleted", "resolved", "given")
    ]
    since = max([op.start - plan.halt_cache, *spoken])
    halts = scene.observer.halts.get((op.worker, op.name), ())
    if not any(since <= at <= op.end and op.answer[1:] == halt for at, halt in halts):
        history.object("a refusal only where there is no room", op.name, f"{op}, halts {halts[-2:]}")


def _room(state: State, size: int, out: int) -> bool:
    """Whether a claim finds room, or may once leases come back; a counter that isn't there refuses nothing."""
    return state.taken is None or state.limit is None or state.taken - out + size <= state.limit


def _states(scene: Scene, name: str, began: float, ended: float) -> list[tuple[float, State]]:
    """What a counter was in the store at some time from `began` to `ended`, and until when."""
    line = scene.observer.timeline.get(name, [])
    first = max(0, bisect_left(line, began, key=itemgetter(0)) - 1)
    after = bisect_right(line, ended, key=itemgetter(0))
    untils = [at for at, _ in line[first + 1 : after + 1]] + [float("inf")]
    return [(until, state) for until, (_, state) in zip(untils, line[first:after], strict=False)]


def _judge_patience(scene: Scene, op: Operation) -> None:
    """A worker that runs answers within the timeout."""
    history = scene.history
    if op.arrived is None or op.worker in history.killed:
        return
    ended = scene.world.time() if op.decided is None else op.decided
    limit = scene.plan.timeout * (3 if op.kind == "check" else 1) + SLACK
    paused = sum(
        max(0.0, min(ended, until) - max(op.arrived, since)) + SLACK
        for since, until in history.pauses.get(op.worker, ())
        if since <= ended
    )
    left = op.answer is not None and op.answer[0] == "left"
    if ended - op.arrived > limit + paused and not (left and op.decided is None):
        history.object("every claim is answered in time", op.name, f"{op}, arrived at {op.arrived:.6f}")


def _judge_keys(scene: Scene) -> None:
    """One key gets one admission, as long as nothing was lost and nobody reset the counter meanwhile."""
    history = scene.history
    if scene.observer.losses:
        return
    first: dict[tuple[str, str], Operation] = {}
    resets: dict[str, list[tuple[float, float]]] = {}
    for op in history.operations:
        if op.kind == "reset":
            resets.setdefault(op.name, []).append((op.start, float("inf") if op.unknown or op.end is None else op.end))
    for op in history.operations:
        if op.key is None or not op.admitted:
            continue
        assert op.answer is not None
        assert op.end is not None
        before = first.setdefault((op.name, op.key), op)
        assert before.answer is not None
        assert before.end is not None
        began, ended = min(op.start, before.start), max(op.end, before.end)
        reset = any(start <= ended and began <= end for start, end in resets.get(op.name, ()))
        if before.answer[1] != op.answer[1] and not reset:
            history.object("one key, one admission", op.name, f"{op}, but first {before}")


class Latest:
    """When each number of a worker was last heard of."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], dict[int, float]] = {}

    def add(self, whose: tuple[str, str], low: int, high: int, at: float) -> None:
        heard = self._at.setdefault(whose, {})
        for number in range(low, high + 1):
            heard[number] = max(at, heard.get(number, at))

    def missing(self, grant: Grant) -> set[int]:
        """Those of a grant that nothing was heard of since."""
        heard = self._at.get((grant.worker, grant.name), {})
        return {number for number in range(grant.low, grant.high + 1) if heard.get(number, -1.0) < grant.time}


def _judge_books(scene: Scene) -> None:
    """Each number that was given has an owner, or a line that says what became of it.

    Or it was in flight when the worker was killed, or when the store lost it (or the receipts that keep a late batch
    from being executed) before the worker had an answer.
    """
    history, observer = scene.history, scene.observer
    told, returned = Latest(), Latest()
    for book in (history.settled, history.orphaned):
        for whose, lines in book.items():
            for at, count, size in lines:
                told.add(whose, count - size + 1, count, at)
    for whose, lines in history.returned.items():
        for at, low, high in lines:
            returned.add(whose, low, high, at)
    for grant in history.grants:
        whose = (grant.worker, grant.name)
        missing = told.missing(grant)
        if grant.lent and missing:
            missing &= returned.missing(grant)
            for at, gone in history.cut.get(grant.name, ()):
                missing -= gone if at >= grant.time else set()
        if not missing:
            continue
        answered = min((at for at in observer.verdicts.get(whose, ()) if at >= grant.time), default=float("inf"))
        if grant.worker in history.killed and (answered == float("inf") or grant.lent):
            continue
        if any(since <= grant.time for since in history.in_doubt.get(whose, ())):
            continue
        if any(grant.sent <= at <= answered for at in observer.lost_at):
            continue
        if grant.scattered and answered < float("inf"):
            continue  # the journal is told only the last of several runs
        if grant.lent and _spent(scene, grant):
            continue
        history.object(
            "the books balance", grant.name, f"nothing says what became of {sorted(missing)[:20]} of {grant}"
        )


def _spent(scene: Scene, grant: Grant) -> bool:
    """Whether a lease may never have come back: the store, or the numbers' epoch, is not what it was any more."""
    history = scene.history
    return (
        scene.world.time() - grant.time > LEASE_KEPT
        or any(at >= grant.sent for at in scene.observer.lost_at)
        or any(at > grant.time for at in history.forgotten.get(grant.name, ()))
        or any(at >= grant.sent for at in history.resets.get(grant.name, ()))
        or (grant.worker, grant.name) in history.in_doubt
        or history.stopped.get(grant.worker, history.calm) < history.calm
    )
