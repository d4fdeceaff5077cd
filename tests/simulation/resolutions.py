"""Judges, when a history is over, what was answered of holds and give-backs, and what the journals were told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.leases import numbers

if TYPE_CHECKING:
    from tests.simulation.history import Operation
    from tests.simulation.sales import Held
    from tests.simulation.scene import Scene

#: Answers about a hold that name its resolution.
NAMED = ("resolved", "otherwise", "expired")


def judge_sales(scene: Scene) -> None:
    """Add what breaks a promise about holds and give-backs to the history's objections."""
    history = scene.history
    #: By counter and hold, the first resolution that somebody was told of.
    first: dict[tuple[str, str], tuple[object, ...]] = {}
    resets: dict[str, float] = {}
    for op in history.operations:
        if op.kind == "reset":
            resets.setdefault(op.name, op.start)
    for op in sorted(history.operations, key=lambda op: (op.end is None, op.end or 0.0)):
        if op.answer is None:
            continue
        if op.kind in ("confirm", "release"):
            _judge_resolution(scene, op, first, resets.get(op.name, float("inf")))
        elif op.kind == "give" and op.answer[0] == "given":
            _judge_give_back(scene, op)
        elif op.admitted and op.hold:
            _judge_hold(scene, op)
    for whose in {*history.resolved, *history.told_resolved}:
        lines, resolved = len(history.resolved.get(whose, ())), history.told_resolved.get(whose, 0)
        if lines != resolved and whose[0] not in history.killed:
            history.object(
                "the books tell of holds and give-backs",
                whose[1],
                f"{whose[0]}: {resolved} holds were resolved, and {lines} are told of",
            )
    for whose in {*history.expired, *history.told_expired}:
        told, should = history.expired.get(whose, 0), history.told_expired.get(whose, 0)
        if told != should and whose[0] not in history.killed:
            history.object(
                "the books tell of holds and give-backs",
                whose[1],
                f"{whose[0]}: {should} numbers have expired, and {told} are told of",
            )


def _judge_hold(scene: Scene, op: Operation) -> None:
    """An answer names a hold with just its numbers, which lasts as long as it says."""
    assert op.answer is not None
    _, last, _, *scattered = op.answer
    got = tuple(n for low, high in scattered or [(last - op.size + 1, last)] for n in range(low, high + 1))
    made = scene.observer.sales.made.get((op.name, op.got[0]), [])
    if not any(hold.numbers == got and hold.expires == op.got[1] for hold in made):
        scene.history.object("an answer names its hold", op.name, f"{op}: {made}")


def _judge_resolution(
    scene: Scene, op: Operation, first: dict[tuple[str, str], tuple[object, ...]], reset: float
) -> None:
    history = scene.history
    assert op.answer is not None
    assert op.end is not None
    assert isinstance(op.hold, str)
    made = scene.observer.sales.made.get((op.name, op.hold), [])
    word, *resolution = op.answer
    if word == "no hold":
        if op.end < reset and not scene.observer.losses:
            history.object("a hold says the same to whoever asks", op.name, f"it is forgotten: {op}")
        return
    if word not in NAMED:
        return
    if not scene.observer.losses and first.setdefault((op.name, op.hold), tuple(resolution)) != tuple(resolution):
        history.object("a hold says the same to whoever asks", op.name, f"{op}, but first {first[op.name, op.hold]}")
    if not any(_fits(op, hold) for hold in made):
        history.object("an answer names its hold", op.name, f"{op}: {made}")


def _fits(op: Operation, hold: Held) -> bool:
    """Whether an answer can be about a hold that was made like this, and is what was asked for or not as it says."""
    assert op.answer is not None
    word, outcome, size, *runs = op.answer
    kept = tuple(n for low, high in runs for n in range(low, high + 1))
    if size != len(hold.numbers) or kept != hold.numbers[: len(kept)]:
        return False
    wanted = len(hold.numbers) if op.limit is None else op.limit
    granted: bool = (outcome, len(kept)) == (("confirmed", wanted) if op.kind == "confirm" else ("released", 0))
    return bool(granted == (word == "resolved") and (outcome == "expired") == (word == "expired"))


def _judge_give_back(scene: Scene, op: Operation) -> None:
    history = scene.history
    assert op.answer is not None
    if op.answer[1] != op.effect and not scene.observer.losses:
        history.object(
            "each number is given back once", op.name, f"the store gave {op.effect} back, and it was told: {op}"
        )
    lines = history.given_back.get((op.worker, op.name), ())
    if not any(numbers(runs) == numbers(op.runs) and given == op.answer[1] for runs, given in lines):
        history.object("the books tell of holds and give-backs", op.name, f"nothing says of {op}")
