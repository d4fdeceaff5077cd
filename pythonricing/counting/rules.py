"""What a counter is and what becomes of it: the one place where that is decided, without a store.

holds.py has what concerns holds, give-backs and claimants. The Lua scripts of Redis, and schema.sql, are translations
of both, held to them by generated cases.
docs/protocol.md says why each rule is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import (
    LEASE_RETURN_SECONDS,
    LEASE_SECONDS,
    MAX_NUMBERS,
    Answer,
    ClaimantMissing,
    ClaimantUnwanted,
    KeyReused,
    TooMany,
)
from pythonricing.counting.windows import window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Outcome, Replay, Run, Seen, Wish

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


class Hold(msgspec.Struct):
    """Numbers that somebody has until a Unix second, and afterwards only if they were confirmed.

    It is forgotten if the counter was started over since, or has lost data since and it was not resolved before.
    """

    #: Of the counter when it was made.
    epoch: int
    losses: int
    expires: int
    #: How many numbers it was made for; which ones, or once resolved, which ones of them are confirmed.
    size: int
    runs: list[Run]
    claimant: str = ""
    outcome: Outcome = "held"
    #: The Unix second until which a resolved one is remembered.
    until: int = 0


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
    #: How many numbers a claimant may own, 0: no claimants; how it renews, "": not at all; and where its window ends.
    each: int = 0
    every: str = ""
    zone: str = ""
    ends: int = 0
    #: The epoch with which it was last started over other than by renewing.
    began: int = 0
    #: How many holds were confirmed or released since then, and how often data was lost.
    resolved: int = 0
    losses: int = 0
    #: By id.
    holds: dict[str, Hold] = {}
    #: The numbers of this epoch that were given back, in runs that lie apart and ascend.
    back: list[Run] = []
    #: Whose which numbers of this epoch are that were not given back; and how many each claimant has of them.
    owners: list[tuple[Run, str]] = []
    shares: dict[str, int] = {}

    @property
    def count(self) -> int:
        """The numbers taken."""
        # Most counters have neither, and this is asked for with every claim.
        return self.issued - (total(self.free) if self.free else 0) - (total(self.back) if self.back else 0)

    @property
    def bound(self) -> int:
        """How many numbers may be taken: the limit, or less where there are no more numbers below 2^53."""
        return min(self.limit, ALL - 1 - total(self.back)) if self.back else self.limit

    @property
    def top(self) -> int:
        """The highest number that may be given."""
        return self.bound + (total(self.back) if self.back else 0)

    @property
    def held(self) -> int:
        """How many numbers of this epoch are on holds."""
        if not self.holds:
            return 0
        return sum(hold.size for hold in self.holds.values() if self.holding(hold) and hold.epoch == self.epoch)

    def holding(self, hold: Hold) -> bool:
        """Whether it can still be resolved."""
        return hold.outcome == "held" and hold.epoch >= self.began and hold.losses == self.losses


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


def decide(
    count: int,
    limit: int,
    size: int,
    most: int = 0,
    replay: Replay | None = None,
    wish: Wish | None = None,
    each: int = 0,
    capped: bool = False,
) -> Answer:
    """What a claim of `size` gets where `count` of `limit` are taken; its `request_count` is the count after it.

    A claim whose idempotency key was used before gets its first answer again (`replay`) and takes nothing. Raises
    KeyReused if that was for another size or claimant, or with a hold where this is without one; TooMany for a size
    above `most`; ClaimantMissing and ClaimantUnwanted where it names none or one and should not. `capped`: its claimant
    has too many for it.
    """
    held, claimant = (False, "") if wish is None else (bool(wish.hold), wish.claimant)
    if replay is not None:
        if replay.size != size or replay.claimant != claimant or (replay.admitted and bool(replay.hold) != held):
            raise KeyReused
        return Answer(
            replay.admitted, replay.count, replay.limit, replay.numbers, replay.hold, replay.expires, replay.capped
        )
    if each and not claimant:
        raise ClaimantMissing
    if claimant and not each:
        raise ClaimantUnwanted
    if most and size > most:
        raise TooMany(most)
    if wish is not None and size > MAX_NUMBERS:
        raise TooMany(MAX_NUMBERS)
    if capped:
        return Answer(False, count, limit, capped=True)
    if count + size <= limit:
        return Answer(True, count + size, limit)
    return Answer(False, count, limit)


def take(state: State, size: int) -> list[Run]:
    """The numbers of an admitted claim: one run, unless only scattered ones are left. The lowest free ones go first.

    None lies above `top`. The limit may have come down: up to there at least as many are free as it leaves.
    """
    for index, (first, last) in enumerate(state.free):
        if min(last, state.top) - first + 1 >= size:
            state.free[index : index + 1] = [(first + size, last)] if first + size <= last else []
            state.moved += size
            return [(first, first + size - 1)]
    if state.issued + size <= state.top:
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
        cut = _cut(lent, run)
        state.free = joined(sorted([*state.free, *cut]))
        state.moved += total(cut)
    still = [part for run in held for part in _cut(lent, run)]
    if still:
        state.leases[worker] = Lease(lease.at, joined(sorted(still)))


def lend(state: State, worker: str, want: int, now: int) -> list[Run]:
    """Lend a worker numbers ahead of need, as long as plenty are left, and never beyond the end of the window."""
    if want < LEASE_LEAST or state.each or (state.ends and now + int(LEASE_SECONDS * 1e6) >= state.ends):
        return []
    size = min(want, (state.bound - state.count) // LEASE_PART)
    if size < LEASE_LEAST or len(state.free) > MAX_FREE:
        return []
    lent = _gather(state, size, MAX_LENT)
    held = state.leases[worker].runs if worker in state.leases else []
    state.leases[worker] = Lease(now, joined(sorted([*held, *lent])))
    return lent


def out(state: State, now: int) -> int:
    """How many numbers are out on leases that may come back."""
    return sum(total(lease.runs) for lease in state.leases.values() if may_come_back(lease, now))


def may_come_back(lease: Lease, now: int) -> bool:
    """Whether a lease is waited for; after that its worker gives nothing from it."""
    return lease.at > now - int(LEASE_RETURN_SECONDS * 1e6)


def renew(state: State, now: int) -> bool:
    """Begin the window that contains a moment, if the one before is over. Returns whether it did.

    Its epoch is the moment at which it begins, so that a copy that is renewed again has the same one, and less in it. A
    counter that is lost waits for an operator.
    """
    if state.deleted or state.lost or not state.ends or now < state.ends:
        return False
    begins, ends = window(state.every, state.zone, now)
    state.epoch, state.ends = max(begins, state.epoch + 1), ends
    state.issued = state.moved = 0
    state.free, state.leases = [], {}
    state.back, state.owners, state.shares = [], [], {}
    return True


def reconcile(state: State | None, seen: Seen | None) -> tuple[State | None, bool]:
    """The state with whatever a worker has seen beyond it, and whether there was any: then the store has lost it.

    Nothing is free or leased then: what an older copy says of that may be over.
    """
    if seen is None:
        return state, False
    if state is None or state.epoch < seen.epoch:
        # Of a counter that is lost the count is the highest that anybody has told, in whichever epoch. And a later
        # epoch of no later revision was no reset of this one, but a later window of it, or begun by somebody who knew
        # nothing.
        told = 0
        if state is not None and not state.deleted:
            later = 0 < state.ends <= seen.epoch
            told = state.issued if state.lost or (state.revision >= seen.revision and not later) else 0
        more = State(seen.epoch, seen.revision, max(told, seen.issued), seen.limit, began=seen.epoch)
        _follow(more, seen)
        more.moved, more.resolved = seen.moved, seen.resolved
        more.lost = state is not None and state.lost
        more.losses = 1 if state is None else state.losses + 1
        return more, True
    more = msgspec.structs.replace(
        state,
        issued=max(state.issued, seen.issued),
        moved=max(state.moved, seen.moved),
        resolved=max(state.resolved, seen.resolved),
        losses=state.losses + 1,
        free=[],
        leases={},
    )
    if state.epoch > seen.epoch:
        more.moved = state.moved
        # Of a window that is over the numbers don't matter any more, but what it renews by does.
        renewed = seen.epoch >= state.began
        over = renewed or 0 < seen.ends <= state.epoch
        if over:
            more.issued = state.issued
        if renewed and (state.revision < seen.revision or state.resolved < seen.resolved):
            if state.revision < seen.revision:
                _follow(more, seen)
            return more, True
        # Begun without knowledge of what was seen; who has nothing to lose has lost nothing. Whoever began it after a
        # deletion made the revision greater than all that they knew of the epoch that it ended.
        told_of = seen.epoch < -state.base or (seen.epoch == -state.base and seen.revision < state.revision)
        known = over or told_of or seen.issued <= max(state.base, 0)
        if known and not (seen.revision and not state.revision):
            return state, False
        if not state.revision and not seen.deleted:
            _follow(more, seen)
        return more, True
    # A deletion and another word of one revision: the store had lost one of them when it got the other. The counter is
    # kept, because numbers may have been given after it.
    parted = state.revision == seen.revision and state.deleted and not seen.deleted
    if state.revision < seen.revision or parted:
        _follow(more, seen)
        return more, True
    fewer = state.issued < seen.issued or state.moved < seen.moved or state.resolved < seen.resolved
    if fewer and not state.deleted:
        return more, True
    return state, False


def newer(known: Seen | None, seen: Seen) -> Seen:
    """What a worker has seen after it has seen `seen` too, which may come from a receipt and be older."""
    if known is None or seen.epoch > known.epoch:
        return seen
    if seen.epoch < known.epoch:
        return known
    latest = seen if seen.revision >= known.revision else known
    return msgspec.structs.replace(
        latest,
        issued=max(known.issued, seen.issued),
        moved=max(known.moved, seen.moved),
        resolved=max(known.resolved, seen.resolved),
    )


def _follow(state: State, seen: Seen) -> None:
    """Have the rules of what was seen."""
    state.revision, state.limit, state.most, state.deleted = seen.revision, seen.limit, seen.most, seen.deleted
    # A worker of an earlier window doesn't end the one that it is now.
    later = state.ends if seen.every and state.epoch > seen.epoch else 0
    state.each, state.every, state.zone, state.ends = seen.each, seen.every, seen.zone, max(later, seen.ends)


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
    fresh = min(size, state.top - state.issued)
    if fresh > 0:
        runs += _issue(state, fresh)
    return joined(runs)


def _cut(runs: list[Run], run: Run) -> list[Run]:
    """Take out of runs what they have of one, and return that."""
    cut = [(max(first, run[0]), min(last, run[1])) for first, last in runs]
    left = [part for first, last in runs for part in ((first, min(last, run[0] - 1)), (max(first, run[1] + 1), last))]
    runs[:] = [(first, last) for first, last in left if first <= last]
    return [(first, last) for first, last in cut if first <= last]
