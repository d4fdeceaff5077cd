"""What becomes of numbers after a claim got them: whose they are, holds, and giving back.

Part of the reference that rules.py begins. Every number is given back at most once in its epoch, whoever does it, and
never given again: so later numbers pass the limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import MAX_DUE, RESOLVED_SECONDS, NoSuchNumber, NumberLeased, Resolution
from pythonricing.counting.rules import Hold, Lease, joined, may_come_back, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Action, Outcome, Run, Wish
    from pythonricing.counting.rules import State


def capped(state: State, claimant: str, size: int) -> bool:
    """Whether a claimant would have more than one may."""
    return bool(state.each and claimant) and state.shares.get(claimant, 0) + size > state.each


def own(state: State, runs: Sequence[Run], wish: Wish, now: int) -> int:
    """Note whose the numbers of an admitted claim are, and its hold. Returns the Unix second at which that expires.

    That is a whole second, so that a hold lasts for as long as was asked, or up to a second longer.
    """
    if wish.claimant:
        state.owners = [*state.owners, *((run, wish.claimant) for run in runs)]
        state.shares = {**state.shares, wish.claimant: state.shares.get(wish.claimant, 0) + total(runs)}
    if not wish.hold:
        return 0
    expires = now // 1_000_000 + wish.seconds + 1
    hold = Hold(state.epoch, state.losses, expires, total(runs), list(runs), wish.claimant)
    state.holds = {**state.holds, wish.hold: hold}
    return expires


def expire(state: State, now: int, most: int = MAX_DUE) -> tuple[int, bool]:
    """Give back the numbers of holds that have expired, and forget those that were resolved long ago.

    A store may do `most` of them at a time, those that are due first. Returns how many numbers went back, and whether
    holds that have expired are left.
    """
    if not state.holds:
        return 0, False
    second = now // 1_000_000
    ripe = sorted((hold.until or hold.expires, id) for id, hold in state.holds.items())
    ripe = [each for each in ripe if each[0] <= second]
    expired = 0
    for _, id in ripe[:most]:
        hold = state.holds[id]
        if state.holding(hold):
            expired += hold.size
            hold = _settle(state, id, "expired", [], hold.expires)
        if hold.until <= second:
            state.holds = {each: kept for each, kept in state.holds.items() if each != id}
    return expired, len(ripe) > most and state.held > 0


def due(state: State) -> int:
    """The Unix second at which the next hold of this window expires; a store may name an earlier one. 0: none does."""
    if not state.holds:
        return 0
    holds = state.holds.values()
    return min((hold.expires for hold in holds if state.holding(hold) and hold.epoch == state.epoch), default=0)


def resolve(state: State, id: str, action: Action, number: int | None, now: int) -> Resolution | None:
    """Confirm the first so many numbers of a hold (None: all) and give the others back; or release it whole.

    What was resolved stays as it is: the outcome says how. Returns None if no such hold is known.
    """
    hold = state.holds.get(id)
    if hold is None or hold.epoch < state.began or (hold.outcome == "held" and hold.losses != state.losses):
        return None
    if hold.outcome == "held" and hold.expires * 1_000_000 <= now:
        hold = _settle(state, id, "expired", [], hold.expires)
    if hold.outcome == "held":
        size = (hold.size if number is None else number) if action == "confirm" else 0
        if size > hold.size:
            return Resolution("held", hold.size)
        hold = _settle(
            state, id, "confirmed" if action == "confirm" else "released", first(hold.runs, size), now // 1_000_000
        )
        state.resolved += 1
    return Resolution(hold.outcome, hold.size, tuple(hold.runs))


def give_back(state: State, runs: Sequence[Run], now: int, epoch: int = 0) -> int:
    """An operator gives numbers back that somebody owns. Returns how many of them had not been given back before.

    They leave their holds; one that has no others is released. `epoch` is the one that they are of, if that is known.
    Raises NoSuchNumber if one was never given, or not in that epoch; NumberLeased while it may be that a worker has one
    and will give it.
    """
    if epoch and state.epoch > epoch:
        raise NoSuchNumber
    for run in runs:
        if run[0] < 1 or run[1] > state.issued or any(_common(run, free) for free in state.free):
            raise NoSuchNumber(run)
    met = {worker: lease for worker, lease in state.leases.items() if _meets(runs, lease.runs)}
    if any(may_come_back(lease, now) for lease in met.values()):
        raise NumberLeased("whether these numbers were given is known only once a lease is over")
    # Their time is over: what their workers have not given, they won't give. If it comes back, it counts for nothing.
    for worker, lease in met.items():
        state.leases = {**state.leases, worker: Lease(lease.at, without(lease.runs, runs))}
    for id, hold in state.holds.items():
        if state.holding(hold) and hold.epoch == state.epoch and _meets(runs, hold.runs):
            left = without(hold.runs, runs)
            state.holds = {**state.holds, id: msgspec.structs.replace(hold, size=total(left), runs=left)}
            if not left:
                _settle(state, id, "released", [], now // 1_000_000)
                state.resolved += 1
    given = sum(mark(state, run) for run in runs)
    state.moved += given
    return given


def mark(state: State, run: Run) -> int:
    """Give a run back, as far as it was not, to its owners' shares too. Returns how many numbers that are."""
    new = without([run], state.back)
    state.back = joined(sorted([*state.back, *new]))
    shares, owners = dict(state.shares), []
    for owned, claimant in state.owners:
        left = without([owned], new)
        shares[claimant] = shares.get(claimant, 0) - total([owned]) + total(left)
        owners += [(part, claimant) for part in left]
    state.owners = owners
    state.shares = {claimant: share for claimant, share in shares.items() if share}
    return total(new)


def first(runs: Sequence[Run], size: int) -> list[Run]:
    """The first so many numbers of runs."""
    got: list[Run] = []
    for low, high in runs:
        part = min(size, high - low + 1)
        if part:
            got.append((low, low + part - 1))
        size -= part
    return got


def without(runs: Sequence[Run], others: Sequence[Run]) -> list[Run]:
    """The parts of runs that are in none of the others."""
    left = list(runs)
    for low, high in others:
        left = [
            part
            for begin, end in left
            for part in ((begin, min(end, low - 1)), (max(begin, high + 1), end))
            if part[0] <= part[1]
        ]
    return left


def _settle(state: State, id: str, outcome: Outcome, kept: list[Run], second: int) -> Hold:
    """Resolve a hold; what is not kept goes back, if the window is still its own."""
    hold = state.holds[id]
    if hold.epoch == state.epoch:
        for run in without(hold.runs, kept):
            mark(state, run)
    state.moved += hold.size
    hold = Hold(
        hold.epoch,
        hold.losses,
        hold.expires,
        hold.size,
        kept,
        outcome=outcome,
        until=second + RESOLVED_SECONDS,
    )
    state.holds = {**state.holds, id: hold}
    return hold


def _common(one: Run, other: Run) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]) + 1)


def _meets(runs: Sequence[Run], others: Sequence[Run]) -> bool:
    return any(_common(run, other) for run in runs for other in others)
