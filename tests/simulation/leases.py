"""What leases are held to at each batch: where each number is in the store, and what a worker says of those it holds."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pythonricing.counting.model import Run
    from tests.simulation.history import Grant, History
    from tests.simulation.observer import State

#: Of what is left, at most one part in so many is lent.
PART = 64
#: Where a batch's arguments have the worker, its sequence, and the runs that it gives back.
WORKER, SEQUENCE, BACK = 9, 10, 17
#: Seconds after which a store may have forgotten a lease, or the receipt of a batch.
FORGOTTEN = 3000.0


@lru_cache(4096)
def runs_of(text: bytes) -> tuple[Run, ...]:
    """The runs in a text as "first-last,first-last", or "-"."""
    pairs = (run.split(b"-") for run in text.replace(b",", b" ").split() if run != b"-")
    return tuple((int(first), int(last)) for first, last in pairs)


def total(runs: Iterable[Run]) -> int:
    return sum(last - first + 1 for first, last in runs)


def numbers(runs: Iterable[Run]) -> set[int]:
    return {number for first, last in runs for number in range(first, last + 1)}


class Leases:
    """Judges what a batch did to the free and the leased numbers of a counter."""

    def __init__(self, history: History) -> None:
        self._history = history
        #: The batches of each worker that were executed.
        self._executed: set[tuple[str, str, bytes]] = set()

    def judge(
        self,
        name: str,
        worker: str,
        before: State,
        after: State,
        words: Sequence[bytes],
        arguments: Sequence[bytes],
        lost_at: Sequence[float],
        now: float,
    ) -> None:
        """After each batch, whatever became of it."""
        self._judge_places(name, after)
        if words[0] == b"LOST" or words[-1].startswith(b"^"):
            if after == before:  # from a receipt, or known already
                return
            own = arguments[WORKER].decode()
            if after.free or any(whose != own or words[0] == b"LOST" for whose, _, _ in after.leases):
                self._history.object("a loss leaves nothing free or leased", name, f"{after}")
            return
        if not words[0].isdigit() or arguments[SEQUENCE] == b"0":
            return
        batch = (worker, name, arguments[SEQUENCE])
        if batch in self._executed:
            return
        self._executed.add(batch)
        lent = runs_of(words[10])
        assert after.taken is not None
        assert after.limit is not None
        if total(lent) > max(0, after.limit - after.taken + total(lent)) // PART:
            self._history.object("a lease is a small part of what is left", name, f"{worker} was lent {lent}: {after}")
        known = next((runs for whose, _, runs in before.leases if whose == arguments[WORKER].decode()), ())
        if before.epoch != after.epoch:
            known = ()
        self._judge_back(name, worker, known, before, after, words, arguments, lost_at, now)

    def _judge_places(self, name: str, state: State) -> None:
        places = [*state.free, *(run for _, _, runs in state.leases for run in runs)]
        if len(numbers(places)) != total(places) or max((last for _, last in places), default=0) > (state.issued or 0):
            self._history.object("a number is free, leased or taken, and once", name, f"{state}")

    def _judge_back(
        self,
        name: str,
        worker: str,
        known: Sequence[Run],
        before: State,
        after: State,
        words: Sequence[bytes],
        arguments: Sequence[bytes],
        lost_at: Sequence[float],
        now: float,
    ) -> None:
        history = self._history
        held = numbers(known)
        free_before = numbers(before.free) if before.epoch == after.epoch else set()
        free_after = numbers(after.free)
        given = numbers(runs_of(words[9])) | numbers(runs_of(words[10]))
        fresh = set(range((before.issued or 0) + 1, (after.issued or 0) + 1))
        if max(given, default=0) > (after.limit or 0) + after.given:
            history.object("no number lies above the limit", name, f"{worker} was given {sorted(given)}: {after}")
        strange = (free_after | given) - free_before - held - fresh
        if strange and before.epoch == after.epoch:
            history.object("only what was lent comes back", name, f"{worker}: {sorted(strange)[:9]}")
        for run in runs_of(arguments[BACK]):
            grant = self._lent(name, worker, run)
            if numbers([run]) <= held:
                if not numbers([run]) <= free_after | given:
                    history.object("what comes back is free", name, f"{worker} gave back {run}")
                history.returned.setdefault((worker, name), []).append((now, *run))
            elif grant is None:
                history.object("a worker gives back only what it holds", name, f"{worker} gave back {run}")
            elif not self._excused(worker, grant, lost_at, now):
                history.object("a worker gives back only what it holds", name, f"{worker} gave back {run} of {grant}")

    def _lent(self, name: str, worker: str, run: Run) -> Grant | None:
        """The last lease that a run can be of; of several that follow each other, the last one."""
        return next(
            (
                grant
                for grant in reversed(self._history.grants)
                if grant.lent and (grant.worker, grant.name) == (worker, name) and grant.low <= run[1] <= grant.high
            ),
            None,
        )

    def _excused(self, worker: str, grant: Grant, lost_at: Sequence[float], now: float) -> bool:
        """Whether the store may not know of a lease any more."""
        history = self._history
        return (
            any(at >= grant.sent for at in lost_at)
            or any(at > grant.time for at in history.forgotten.get(grant.name, ()))
            or any(at >= grant.sent for at in history.resets.get(grant.name, ()))
            or any(at >= grant.time for at, _ in history.cut.get(grant.name, ()))
            or (worker, grant.name) in history.in_doubt
            or now - grant.sent > FORGOTTEN
        )
