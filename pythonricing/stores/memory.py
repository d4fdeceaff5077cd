"""Counters in this process's memory: exact within one worker, forgotten when it ends."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar, cast

from pythonricing.counting.model import (
    KEY_SECONDS,
    REFUSED_KEY_SECONDS,
    Batch,
    Counter,
    KeyReused,
    NoSuchCounter,
    Replay,
    Seen,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    TooMany,
    Verdict,
)
from pythonricing.counting.rules import ALL, State, decide, joined, lend, out, reconcile, take, take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.model import How, Run, Server, Word
    from pythonricing.settings import OnLoss


#: Operators' words whose replies are remembered.
MAX_WORDS = 1000

T = TypeVar("T")


class MemoryStore:
    """A Store without a server, and the model to which those with one are held."""

    def __init__(self, on_loss: OnLoss = "halt") -> None:
        self._on_loss = on_loss
        self.on_connect: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        #: Counters, lost ones and tombstones too.
        self._states: dict[str, State] = {}
        self._receipts: dict[tuple[str, str], tuple[int, Verdict | StoreError]] = {}
        self._words: OrderedDict[tuple[str, str], object] = OrderedDict()
        # Each in order of arrival, so that the expired ones are at the front.
        self._admitted: OrderedDict[tuple[str, int, str], tuple[float, Replay]] = OrderedDict()
        self._refused: OrderedDict[tuple[str, int, str], tuple[float, Replay]] = OrderedDict()

    def servers(self) -> Sequence[Server]:
        return ()

    def server_of(self, name: str) -> str:
        return "memory"

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ready(self, name: str | None = None) -> None:
        pass

    async def probe(self) -> None:
        return None

    async def clock(self, name: str) -> int:
        return self._now()

    async def claim(self, batch: Batch) -> Verdict:
        receipt = self._receipts.get((batch.name, batch.worker))
        if receipt is not None and receipt[0] >= batch.sequence:
            if receipt[0] > batch.sequence:
                raise StoreRejected("a later batch of this worker was executed before this one")
            if isinstance(receipt[1], StoreError):
                raise receipt[1]
            return receipt[1]
        try:
            state, raised = self._current(batch.name, batch.seen, batch.create)
        except StoreError as error:
            if batch.attempt:  # the first copy must not be executed when it arrives
                self._receipts[batch.name, batch.worker] = (batch.sequence, error)
            raise
        now = self._now()
        runs: list[Run] = []
        replays: list[Replay | None] = []
        take_back(state, batch.worker, batch.back, batch.held)
        before = state.count
        full = False
        for size, key in zip(batch.sizes, batch.keys or [None] * len(batch.sizes), strict=True):
            replay = None
            if key is not None:
                replay = self._remembered(batch.name, state.epoch, key)
                replays.append(replay)
            try:
                answer = decide(state.count, state.limit, size, state.most, replay)
            except (KeyReused, TooMany):
                continue
            if replay is not None:
                continue
            got = take(state, size) if answer.admitted else []
            runs += got
            full = full or not answer.admitted
            if key is not None and (got or state.count + size - out(state, now) > state.limit):
                number = got[-1][1] if got else state.count
                numbers = tuple(got) if len(got) > 1 else ()
                replay = Replay(size, number, state.limit, answer.admitted, numbers)
                self._remember(batch.name, state.epoch, key, replay)
        waited = out(state, now) if full or state.count >= state.limit else 0
        lent = lend(state, batch.worker, batch.want, now)
        verdict = Verdict(
            batch.attempt,
            state.epoch,
            state.revision,
            state.limit,
            state.most,
            before,
            state.issued,
            state.moved,
            waited,
            joined(runs),
            lent,
            replays,
            raised,
        )
        self._receipts[batch.name, batch.worker] = (batch.sequence, verdict)
        return verdict

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        state, raised = self._current(name, seen, create)
        return self._shown(name, state, raised)

    async def put(
        self, name: str, word: Word, limit: int | None, most: int | None = None, how: How = "change"
    ) -> tuple[Counter, bool]:
        if (name, word.id) in self._words:
            said = self._words[name, word.id]
            if said is None:
                raise StateLost(name)
            return cast("tuple[Counter, bool]", said)
        self._in_time(name, word)
        state = self._states.get(name)
        raised = None
        if how != "restart":
            marked = state is not None and state.lost
            state, raised = self._recover(name, word.seen)
            if state is not None and state.lost and (how == "configure" or not marked):
                # Sent again, it must not end the loss that it was the first to notice.
                self._said(name, word, None)
                raise StateLost(name)
        gone = state is None or state.deleted
        if limit is None:
            # A counter that is gone starts over with the limit that was seen.
            last = word.seen if state is None and how == "restart" else state
            if last is None or last.deleted:
                raise _missing(name, state)
            limit = last.limit
        if state is None or state.deleted or how == "restart":
            by_settings = how == "configure" and state is None
            seen_revision = word.seen.revision if word.seen is not None else 0
            revision = 0 if by_settings else max(state.revision if state is not None else 0, seen_revision) + 1
            restart = how == "restart"
            kept = 0 if state is None or state.deleted else state.most
            state = self._start(name, word.seen, limit, kept if most is None else most, revision, restart)
            raised = None
        else:
            new_most = state.most if most is None else most
            if state.lost or (limit, new_most) != (state.limit, state.most):
                if state.lost:
                    state.base, state.lost = state.base if state.base < 0 else max(state.base, state.issued), False
                state.limit, state.most, state.revision = limit, new_most, state.revision + 1
        return self._said(name, word, (self._shown(name, state, raised), gone))

    async def delete(self, name: str, word: Word) -> Seen:
        if (name, word.id) in self._words:
            return cast("Seen", self._words[name, word.id])
        self._in_time(name, word)
        state, _ = reconcile(self._states.get(name), word.seen)
        if state is None or (state.deleted and not state.lost):
            raise _missing(name, state)
        self._states[name] = State(state.epoch, state.revision + 1, 0, 0, base=ALL, deleted=True)
        return self._said(name, word, Seen(state.epoch, state.revision + 1, 0, 0, deleted=True))

    async def browse(self, limit: int, after: str = "") -> list[Counter]:
        states = self._states.items()
        shown = sorted(name for name, state in states if name > after and (state.lost or not state.deleted))
        return [self._shown(name, self._states[name]) for name in shown[:limit]]

    def _now(self) -> int:
        return time.time_ns() // 1000

    def _shown(self, name: str, state: State, raised: int | None = None) -> Counter:
        stamps = (state.issued, state.moved, out(state, self._now()))
        return Counter(
            name, state.count, state.limit, state.epoch, state.lost, state.revision, state.most, raised, *stamps
        )

    async def inspect(self) -> dict[str, dict[str, str]]:
        return {}

    def _said(self, name: str, word: Word, reply: T) -> T:
        """Remember the reply to an operator's word."""
        if len(self._words) == MAX_WORDS:
            self._words.popitem(last=False)
        self._words[name, word.id] = reply
        return reply

    def _in_time(self, name: str, word: Word) -> None:
        if self._now() > word.not_after:
            raise StoreUnavailable("the word came too late")

    def _recover(self, name: str, seen: Seen | None) -> tuple[State | None, int | None]:
        """The state with what a worker has seen beyond it; and the count before a loss raised it, if one did."""
        before = self._states.get(name)
        state, lost = reconcile(before, seen)
        if state is None or not (lost or state.lost):
            return state, None
        state.lost = self._on_loss == "halt"
        self._states[name] = state
        return state, None if state.lost else before.issued if before is not None else 0

    def _current(self, name: str, seen: Seen | None, create: int | None) -> tuple[State, int | None]:
        """A counter to claim from or to read, and the count before a loss raised it."""
        state, raised = self._recover(name, seen)
        if state is not None and state.lost:
            raise StateLost(name)
        if state is None or state.deleted:
            if create is None:
                raise _missing(name, state)
            return self._start(name, seen, create, 0, 0 if state is None else state.revision + 1), None
        return state, raised

    def _start(
        self, name: str, seen: Seen | None, limit: int, most: int, revision: int, restart: bool = False
    ) -> State:
        """Begin an epoch at 0."""
        before = self._states[name].epoch if name in self._states else 0
        last = max(before, seen.epoch if seen is not None else 0)
        epoch = max(self._now(), last + 1)
        state = self._states[name] = State(epoch, revision, 0, limit, most, ALL if restart else -before)
        return state

    def _remember(self, name: str, epoch: int, key: str, replay: Replay) -> None:
        kept, seconds = (self._admitted, KEY_SECONDS) if replay.admitted else (self._refused, REFUSED_KEY_SECONDS)
        kept[name, epoch, key] = (time.monotonic() + seconds, replay)

    def _remembered(self, name: str, epoch: int, key: str) -> Replay | None:
        now = time.monotonic()
        for kept in (self._admitted, self._refused):
            while kept and next(iter(kept.values()))[0] <= now:
                kept.popitem(last=False)
        found = self._admitted.get((name, epoch, key)) or self._refused.get((name, epoch, key))
        return None if found is None else found[1]


def _missing(name: str, state: State | None) -> NoSuchCounter:
    return NoSuchCounter(name, None if state is None else Seen(state.epoch, state.revision, 0, 0, deleted=True))
