"""What a claim gets: the one place where it is decided. claim.lua and schema.sql are translations of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythonricing.counting.model import Answer, KeyReused

if TYPE_CHECKING:
    from pythonricing.counting.model import Replay


def decide(count: int, limit: int, size: int, replay: Replay | None = None) -> Answer:
    """What a claim of `size` gets where `count` of `limit` are taken; its `request_count` is the count after it.

    A claim whose idempotency key was used before gets its first answer again (`replay`) and takes nothing. Raises
    KeyReused if that was for another size.
    """
    if replay is not None:
        if replay.size != size:
            raise KeyReused
        return Answer(replay.admitted, replay.count, replay.limit)
    if count + size <= limit:
        return Answer(True, count + size, limit)
    return Answer(False, count, limit)
