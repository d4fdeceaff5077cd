"""Counters in this process's memory: exact within one worker, forgotten when it ends."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import (
    KEY_SECONDS,
    Batch,
    Counter,
    NoSuchCounter,
    Replay,
    Seen,
    Server,
    StateLost,
    StoreRejected,
    Verdict,
)
from pythonricing.counting.rules import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.settings import OnLoss


class _State(msgspec.Struct):
    count: int
    limit: int
    epoch: int


class MemoryStore:
    """A Store without a server."""

    def __init__(self, on_loss: OnLoss = "halt") -> None:
        self._on_loss = on_loss
        self.on_connect: Callable[[], None] = lambda: None
        self._counters: dict[str, _State] = {}
        self._deleted: set[str] = set()
        self._receipts: dict[tuple[str, str], tuple[int, Verdict]] = {}
        # In order of arrival, so that the expired ones are at the front.
        self._keys: OrderedDict[tuple[str, int, str], tuple[float, Replay]] = OrderedDict()
        self._epoch = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ready(self, name: str | None = None) -> None:
        pass

    async def probe(self) -> None:
        return None

    def servers(self) -> Sequence[Server]:
        return [Server("", connected=True)]

    def server_of(self, name: str) -> str:
        return ""

    async def claim(self, batch: Batch) -> Verdict:
        receipt = self._receipts.get((batch.name, batch.worker))
        if receipt is not None and receipt[0] >= batch.sequence:
            if receipt[0] > batch.sequence:
                raise StoreRejected("a later batch of this worker was executed before this one")
            return receipt[1]
        state = self._checked(batch.name, batch.seen, batch.create)
        before, limit = state.count, state.limit
        replays: list[Replay | None] = []
        for size, key in zip(batch.sizes, batch.keys or [None] * len(batch.sizes), strict=True):
            if key is not None:
                replays.append(self._remembered(batch.name, state.epoch, key))
                if replays[-1] is not None:
                    continue
            answer = decide(state.count, limit, size)
            state.count = answer.request_count
            if key is not None:
                self._keys[batch.name, state.epoch, key] = (
                    time.monotonic() + KEY_SECONDS,
                    Replay(size, state.count, limit, answer.admitted),
                )
        verdict = Verdict(batch.attempt, state.epoch, limit, before, replays)
        self._receipts[batch.name, batch.worker] = (batch.sequence, verdict)
        return verdict

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        return self._counter(name, self._checked(name, seen, create))

    async def put(self, name: str, limit: int | None, *, restart: bool = False) -> tuple[Counter, bool]:
        state = self._counters.get(name)
        if state is None:
            if limit is None:
                raise NoSuchCounter(name)
            return self._counter(name, self._create(name, limit)), True
        if limit is not None:
            state.limit = limit
        if restart:
            state = self._create(name, state.limit)
        return self._counter(name, state), False

    async def configure(self, name: str, limit: int) -> None:
        await self.put(name, limit)

    async def delete(self, name: str) -> None:
        if self._counters.pop(name, None) is None:
            raise NoSuchCounter(name)
        self._deleted.add(name)

    async def browse(self, limit: int) -> list[Counter]:
        return [self._counter(name, self._counters[name]) for name in sorted(self._counters)[:limit]]

    def _counter(self, name: str, state: _State) -> Counter:
        return Counter(name, state.count, state.limit, state.epoch)

    def _create(self, name: str, limit: int) -> _State:
        self._epoch = max(time.time_ns() // 1000, self._epoch + 1)
        self._deleted.discard(name)
        state = self._counters[name] = _State(0, limit, self._epoch)
        return state

    def _checked(self, name: str, seen: Seen | None, create: int | None) -> _State:
        state = self._counters.get(name)
        if state is None:
            if seen is not None and name not in self._deleted:
                if self._on_loss == "halt":
                    raise StateLost(name)
                self._epoch = max(self._epoch, seen.epoch)
                state = self._counters[name] = _State(seen.count, seen.limit, seen.epoch)
                return state
            if create is None:
                raise NoSuchCounter(name)
            return self._create(name, create)
        return state

    def _remembered(self, name: str, epoch: int, key: str) -> Replay | None:
        now = time.monotonic()
        while self._keys and next(iter(self._keys.values()))[0] <= now:
            self._keys.popitem(last=False)
        found = self._keys.get((name, epoch, key))
        return None if found is None else found[1]
