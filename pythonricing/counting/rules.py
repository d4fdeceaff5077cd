"""What a counter is and what becomes of it: the one place where that is decided, without a store.

counter.lua, claim.lua, put.lua and delete.lua, and schema.sql, are translations of it, held to it by generated cases.
docs/protocol.md says why each rule is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import LEASE_RETURN_SECONDS, Answer, KeyReused, TooMany

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Replay, Run, Seen

#: As a base: the epoch was begun by somebody who knew of all numbers before it, and meant to start over.
ALL = 2**53
#: A lease is at most this part of what is left, and at least so many numbers.
LEASE_PART, LEASE_LEAST = 64, 4
#: Free runs above which nothing is lent, because leases leave more behind.
MAX_FREE = 64
#: Free runs that one lease is made of at most.
MAX_LENT = 8


class Lease(msgspec.Struct, frozen=True):
    """What a worker holds of a counter, in runs that lie apart and ascend, and when it was last lent to.

    `at` is in microseconds of the store's clock.
    """

    at: int
    runs: list[Run]


class State(msgspec.Struct):
    """A counter, or its tombstone, as a store keeps it.

    `base` is the highest number of earlier epochs that this one takes account of; or, negative, the last epoch of which
    it takes account of all, for one that began after a known deletion. `most` is the largest claim, 0: no bound. A
    tombstone (`deleted`) has the epoch and the revision of its deletion. `free` runs lie apart from each other and
    ascend.
    """

    epoch: int
    revision: int
    issued: int
    limit: int
    most: int = 0
    base: int = 0
    lost: bool = False
    deleted: bool = False
    moved: int = 0
    free: list[Run] = []
    #: By worker.
    leases: dict[str, Lease] = {}

    @property
    def count(self) -> int:
        """The numbers taken."""
        return self.issued - total(self.free)


def total(runs: Sequence[Run]) -> int:
    """How many numbers there are in runs."""
    return sum(last - first + 1 for first, last in runs)


def joined(runs: Sequence[Run]) -> list[Run]:
    """Runs in the same order, those that follow each other made one."""
    made: list[Run] = []
    for first, last in runs:
        if made and made[-1][1] + 1 == first:
            made[-1] = (made[-1][0], last)
        else:
            made.append((first, last))
    return made


def decide(count: int, limit: int, size: int, most: int = 0, replay: Replay | None = None) -> Answer:
    """What a claim of `size` gets where `count` of `limit` are taken; its `request_count` is the count after it.

    A claim whose idempotency key was used before gets its first answer again (`replay`) and takes nothing. Raises
    KeyReused if that was for another size, and TooMany for a size above `most`.
    """
    if replay is not None:
        if replay.size != size:
            raise KeyReused
        return Answer(replay.admitted, replay.count, replay.limit, replay.numbers)
    if most and size > most:
        raise TooMany(most)
    if count + size <= limit:
        return Answer(True, count + size, limit)
    return Answer(False, count, limit)


def take(state: State, size: int) -> list[Run]:
    """The numbers of an admitted claim: one run, unless only scattered ones are left. The lowest free ones go first.

    None lies above the limit, which may have come down: up to there at least as many are free as the limit leaves.
    """
    for index, (first, last) in enumerate(state.free):
        if min(last, state.limit) - first + 1 >= size:
            state.free[index : index + 1] = [(first + size, last)] if first + size <= last else []
            state.moved += size
            return [(first, first + size - 1)]
    if state.issued + size <= state.limit:
        return _issue(state, size)
    return _gather(state, size, len(state.free))


def take_back(state: State, worker: str, back: Sequence[Run], held: Sequence[Run]) -> None:
    """Free what a worker gives back of the lease that the store knows of, and note what it still holds."""
    lease = state.leases.pop(worker, None)
    if lease is None:
        return
    # Whatever else is said, no number counts as free and as held, or twice.
    lent = lease.runs
    for run in back:
        if _cut(lent, run):
            state.free = joined(sorted([*state.free, run]))
            state.moved += total([run])
    held = [run for run in held if _cut(lent, run)]
    if held:
        state.leases[worker] = Lease(lease.at, joined(sorted(held)))


def lend(state: State, worker: str, want: int, now: int) -> list[Run]:
    """Lend a worker numbers ahead of need, as long as plenty are left."""
    size = min(want, (state.limit - state.count) // LEASE_PART)
    if size < LEASE_LEAST or len(state.free) > MAX_FREE:
        return []
    lent = _gather(state, size, MAX_LENT)
    held = state.leases[worker].runs if worker in state.leases else []
    state.leases[worker] = Lease(now, joined(sorted([*held, *lent])))
    return lent


def out(state: State, now: int) -> int:
    """How many numbers are out on leases that may come back."""
    young = now - int(LEASE_RETURN_SECONDS * 1e6)
    return sum(total(lease.runs) for lease in state.leases.values() if lease.at > young)


def reconcile(state: State | None, seen: Seen | None) -> tuple[State | None, bool]:
    """The state with whatever a worker has seen beyond it, and whether there was any: then the store has lost it.

    Nothing is free or leased then: what an older copy says of that may be over.
    """
    if seen is None:
        return state, False
    if state is None or state.epoch < seen.epoch:
        # Of a counter that is lost the count is the highest that anybody has told, in whichever epoch. And a later
        # epoch of no later revision was no reset of this one, but begun by somebody who knew nothing.
        kept = state is not None and not state.deleted and (state.lost or state.revision >= seen.revision)
        told = state.issued if state is not None and kept else 0
        more = State(seen.epoch, seen.revision, max(told, seen.issued), seen.limit, seen.most)
        more.deleted, more.moved = seen.deleted, seen.moved
        more.lost = state is not None and state.lost
        return more, True
    more = msgspec.structs.replace(
        state, issued=max(state.issued, seen.issued), moved=max(state.moved, seen.moved), free=[], leases={}
    )
    if state.epoch > seen.epoch:
        # Begun without knowledge of what was seen; who has nothing to lose has lost nothing. Whoever began it after a
        # deletion made the revision greater than all that they knew of the epoch that it ended.
        told_of = seen.epoch < -state.base or (seen.epoch == -state.base and seen.revision < state.revision)
        known = told_of or seen.issued <= max(state.base, 0)
        if known and not (seen.revision and not state.revision):
            return state, False
        more.moved = state.moved
        if not state.revision and not seen.deleted:
            more.revision, more.limit, more.most = seen.revision, seen.limit, seen.most
        return more, True
    # A deletion and another word of one revision: the store had lost one of them when it got the other. The counter is
    # kept, because numbers may have been given after it.
    parted = state.revision == seen.revision and state.deleted and not seen.deleted
    if state.revision < seen.revision or parted:
        more.revision, more.limit, more.most, more.deleted = seen.revision, seen.limit, seen.most, seen.deleted
        return more, True
    if not state.deleted and (state.issued < seen.issued or state.moved < seen.moved):
        return more, True
    return state, False


def newer(known: Seen | None, seen: Seen) -> Seen:
    """What a worker has seen after it has seen `seen` too, which may come from a receipt and be older."""
    if known is None or seen.epoch > known.epoch:
        return seen
    if seen.epoch < known.epoch:
        return known
    latest = seen if seen.revision >= known.revision else known
    return msgspec.structs.replace(latest, issued=max(known.issued, seen.issued), moved=max(known.moved, seen.moved))


def _issue(state: State, size: int) -> list[Run]:
    """Numbers that were never given."""
    state.issued += size
    return [(state.issued - size + 1, state.issued)]


def _gather(state: State, size: int, most: int) -> list[Run]:
    """Numbers from at most so many of the lowest free runs, and the rest of them fresh, as far as the limit goes."""
    runs: list[Run] = []
    while size and state.free and len(runs) < most:
        first, last = state.free.pop(0)
        if last - first + 1 > size:
            state.free.insert(0, (first + size, last))
            last = first + size - 1
        runs.append((first, last))
        size -= last - first + 1
        state.moved += last - first + 1
    fresh = min(size, state.limit - state.issued)
    if fresh > 0:
        runs += _issue(state, fresh)
    return joined(runs)


def _cut(runs: list[Run], run: Run) -> bool:
    """Take a run out of those, if one of them has all of it."""
    for index, (first, last) in enumerate(runs):
        if first <= run[0] <= run[1] <= last:
            left = [(first, run[0] - 1), (run[1] + 1, last)]
            runs[index : index + 1] = [(first, last) for first, last in left if first <= last]
            return True
    return False
