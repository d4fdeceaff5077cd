"""What a counter is and what becomes of it: the one place where that is decided, without a store.

counter.lua, claim.lua, put.lua and delete.lua, and schema.sql, are translations of it, held to it by generated cases.
docs/protocol.md says why each rule is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import Answer, KeyReused, TooMany

if TYPE_CHECKING:
    from pythonricing.counting.model import Replay, Seen

#: As a base: the epoch was begun by somebody who knew of all numbers before it, and meant to start over.
ALL = 2**53


class State(msgspec.Struct):
    """A counter, or its tombstone, as a store keeps it.

    `base` is the highest number of earlier epochs that this one takes account of; or, negative, the last epoch of which
    it takes account of all, for one that began after a known deletion. `most` is the largest claim, 0: no
    bound. A tombstone (`deleted`) has the epoch and the revision of its deletion.
    """

    epoch: int
    revision: int
    count: int
    limit: int
    most: int = 0
    base: int = 0
    lost: bool = False
    deleted: bool = False


def decide(count: int, limit: int, size: int, most: int = 0, replay: Replay | None = None) -> Answer:
    """What a claim of `size` gets where `count` of `limit` are taken; its `request_count` is the count after it.

    A claim whose idempotency key was used before gets its first answer again (`replay`) and takes nothing. Raises
    KeyReused if that was for another size, and TooMany for a size above `most`.
    """
    if replay is not None:
        if replay.size != size:
            raise KeyReused
        return Answer(replay.admitted, replay.count, replay.limit)
    if most and size > most:
        raise TooMany(most)
    if count + size <= limit:
        return Answer(True, count + size, limit)
    return Answer(False, count, limit)


def reconcile(state: State | None, seen: Seen | None) -> tuple[State | None, bool]:
    """The state with whatever a worker has seen beyond it, and whether there was any: then the store has lost it."""
    if seen is None:
        return state, False
    if state is None or state.epoch < seen.epoch:
        more = State(seen.epoch, seen.revision, seen.count, seen.limit, seen.most, deleted=seen.deleted)
        more.lost = state is not None and state.lost
        return more, True
    if state.epoch > seen.epoch:
        # Begun without knowledge of what was seen; who has nothing to lose has lost nothing.
        known = seen.epoch <= -state.base or seen.count <= max(state.base, 0)
        if known and not (seen.revision and not state.revision):
            return state, False
        more = msgspec.structs.replace(state, count=max(state.count, seen.count))
        if not state.revision and not seen.deleted:
            more = msgspec.structs.replace(more, revision=seen.revision, limit=seen.limit, most=seen.most)
        return more, True
    if state.revision < seen.revision:
        more = msgspec.structs.replace(
            state,
            revision=seen.revision,
            count=max(state.count, seen.count),
            limit=seen.limit,
            most=seen.most,
            deleted=seen.deleted,
        )
        return more, True
    if state.count < seen.count and not state.deleted:
        return msgspec.structs.replace(state, count=seen.count), True
    return state, False


def newer(known: Seen | None, seen: Seen) -> Seen:
    """What a worker has seen after it has seen `seen` too, which may come from a receipt and be older."""
    if known is None or seen.epoch > known.epoch:
        return seen
    if seen.epoch < known.epoch:
        return known
    latest = seen if seen.revision >= known.revision else known
    return msgspec.structs.replace(latest, count=max(known.count, seen.count))
