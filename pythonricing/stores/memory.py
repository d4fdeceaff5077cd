"""Counters in this process's memory: exact within one worker, forgotten when it ends."""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from pythonricing.counting.holds import capped, due, expire, give_back, own, resolve
from pythonricing.counting.model import (
    KEEP,
    KEY_SECONDS,
    MAX_DUE,
    MAX_REREAD,
    REFUSED_KEY_SECONDS,
    Batch,
    ClaimantMissing,
    ClaimantUnwanted,
    Counter,
    KeyReused,
    NoSuchCounter,
    NoSuchNumber,
    Replay,
    Rules,
    Seen,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    TooMany,
    Verdict,
    ZoneUnknown,
)
from pythonricing.counting.rules import ALL, State, decide, joined, lend, out, reconcile, renew, take, take_back, total
from pythonricing.counting.windows import window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.model import Action, How, Resolution, Run, Server, Word
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
        # By counter and key, with the epoch; in order of arrival, so that the expired ones are at the front.
        self._admitted: OrderedDict[tuple[str, str], tuple[float, int, Replay]] = OrderedDict()
        self._refused: OrderedDict[tuple[str, str], tuple[float, int, Replay]] = OrderedDict()

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
        refused: list[int] = []
        take_back(state, batch.worker, batch.back, batch.held)
        expired, more = expire(state, now)
        before, limit = state.count, state.bound
        taken = before
        full = False
        claims = zip(batch.sizes, batch.keys or repeat(None), batch.wishes or repeat(None))  # noqa: B905
        for place, (size, key, wish) in enumerate(claims):
            replay = None
            if key is not None:
                replay = self._remembered(batch.name, state, key)
                replays.append(replay)
            claimant = "" if wish is None else wish.claimant
            cap = claimant != "" and capped(state, claimant, size)
            try:
                answer = decide(taken, limit, size, state.most, replay, wish, state.each, cap)
            except (KeyReused, TooMany, ClaimantMissing, ClaimantUnwanted):
                continue
            if replay is not None:
                continue
            got: list[Run] = []
            if answer.admitted:
                got, taken = take(state, size), taken + size
            expires = own(state, got, wish, now) if got and wish is not None else 0
            runs += got
            if cap:
                refused.append(place)
            full = full or not (answer.admitted or cap)
            # A refusal is remembered once neither a lease nor a hold can make room any more.
            if key is not None and (
                got or (not state.held if cap else taken + size - out(state, now) - state.held > limit)
            ):
                number = got[-1][1] if got else taken
                numbers = tuple(got) if len(got) > 1 else ()
                hold = wish.hold if got and wish is not None else ""
                replay = Replay(size, number, limit, bool(got), numbers, hold, expires, cap, claimant)
                self._remember(batch.name, state.epoch, key, replay)
        waited = self._out(state, now, more) if full or taken >= limit else 0
        lent = lend(state, batch.worker, batch.want, now)
        verdict = Verdict(
            batch.attempt,
            state.epoch,
            state.revision,
            limit,
            state.most,
            before,
            state.issued,
            state.moved,
            waited,
            joined(runs),
            lent,
            replays,
            raised,
            state.each,
            state.every,
            state.zone,
            state.ends,
            state.resolved,
            due(state),
            now if state.ends or state.held else 0,
            expired,
            state.held,
            tuple(refused),
        )
        self._receipts[batch.name, batch.worker] = (batch.sequence, verdict)
        return verdict

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        state, raised = self._current(name, seen, create)
        expired, _ = expire(state, self._now(), MAX_DUE * MAX_REREAD)
        return self._shown(name, state, raised, expired)

    async def put(
        self, name: str, word: Word, limit: int | None, rules: Rules = KEEP, how: How = "change"
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
        now = self._now()
        if state is None or state.deleted or how == "restart":
            by_settings = how == "configure" and state is None
            seen_revision = word.seen.revision if word.seen is not None else 0
            revision = 0 if by_settings else max(state.revision if state is not None else 0, seen_revision) + 1
            restart = how == "restart"
            # What is gone starts over with the rules that were seen too.
            last = word.seen if state is None and restart else state
            kept = (0, 0, "", "") if last is None or last.deleted else _rules(last)
            changed = _changed(kept, rules)
            ends = _ends(changed, now)
            state = self._start(name, word.seen, limit, revision, restart)
            state.most, state.each, state.every, state.zone = changed
            state.ends = ends
            raised = None
        else:
            changed = _changed(_rules(state), rules)
            if state.lost or (limit, changed) != (state.limit, _rules(state)):
                ends = state.ends if changed[2:] == (state.every, state.zone) else _ends(changed, now)
                if state.lost:
                    state.base, state.lost = state.base if state.base < 0 else max(state.base, state.issued), False
                state.most, state.each, state.every, state.zone = changed
                state.ends = ends
                state.limit, state.revision = limit, state.revision + 1
            renew(state, now)
        expired, _ = expire(state, now)
        return self._said(name, word, (self._shown(name, state, raised, expired), gone))

    async def resolve(
        self, name: str, word: Word, id: str, action: Action, number: int | None = None
    ) -> tuple[Resolution | None, Counter]:
        self._in_time(name, word)
        state, raised = self._current(name, word.seen, None)
        expired, _ = expire(state, self._now())
        before = state.resolved
        resolution = resolve(state, id, action, number, self._now())
        counter = self._shown(name, state, raised, expired)
        return resolution, msgspec.structs.replace(counter, settled=state.resolved > before)

    async def give_back(self, name: str, word: Word, runs: Sequence[Run]) -> tuple[int, Counter]:
        if (name, word.id) in self._words:
            said = self._words[name, word.id]
            if isinstance(said, Exception):
                raise said
            return cast("tuple[int, Counter]", said)
        self._in_time(name, word)
        try:
            state, raised = self._current(name, word.seen, None)
            expired, _ = expire(state, self._now())
            epoch = 0 if word.seen is None else word.seen.epoch
            given = give_back(state, runs, self._now(), epoch)
        except (StateLost, NoSuchNumber) as error:
            # Sent again, it must not be executed once this is over.
            raise self._said(name, word, error) from None
        return self._said(name, word, (given, self._shown(name, state, raised, expired)))

    async def delete(self, name: str, word: Word) -> Seen:
        if (name, word.id) in self._words:
            return cast("Seen", self._words[name, word.id])
        self._in_time(name, word)
        before = self._states.get(name)
        if before is not None:
            renew(before, self._now())
        state, _ = reconcile(before, word.seen)
        if state is None or (state.deleted and not state.lost):
            raise _missing(name, state)
        self._states[name] = State(state.epoch, state.revision + 1, 0, 0, base=ALL, deleted=True, began=state.epoch)
        return self._said(name, word, Seen(state.epoch, state.revision + 1, 0, 0, deleted=True))

    async def browse(self, limit: int, after: str = "", *, reachable_only: bool = False) -> list[Counter]:
        states = self._states.items()
        names = sorted(name for name, state in states if name > after and (state.lost or not state.deleted))[:limit]
        shown = []
        for name in names:
            state, now, expired = self._states[name], self._now(), 0
            with suppress(ZoneUnknown):  # it is as it was, then
                renew(state, now)
                expired = 0 if state.lost else expire(state, now, MAX_DUE * MAX_REREAD)[0]
            shown.append(self._shown(name, state, None, expired))
        return shown

    def _now(self) -> int:
        return time.time_ns() // 1000

    def _seconds(self) -> float:
        """What idempotency keys are forgotten by."""
        return time.monotonic()

    def _shown(self, name: str, state: State, raised: int | None = None, expired: int = 0) -> Counter:
        now = self._now()
        return Counter(
            name,
            state.count,
            state.limit,
            state.epoch,
            state.lost,
            state.revision,
            state.most,
            raised,
            state.issued,
            state.moved,
            out(state, now),
            state.each,
            state.every,
            state.zone,
            state.ends,
            state.resolved,
            state.held,
            total(state.back),
            due(state),
            now if state.ends or state.held else 0,
            expired,
        )

    @staticmethod
    def _out(state: State, now: int, more: bool) -> int:
        """How many numbers may come back before long: from leases, and from holds that have expired (see expire)."""
        return out(state, now) + (state.held if more else 0)

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
        """The state with what a worker has seen beyond it; and the count before a loss raised it, if one did.

        Its window is renewed first: what was seen of one that is over is no loss. And again if it is another one's.
        """
        before, now = self._states.get(name), self._now()
        if before is not None:
            renew(before, now)
        state, lost = reconcile(before, seen)
        if state is None or not (lost or state.lost):
            return state, None
        state.lost = self._on_loss == "halt"
        self._states[name] = state
        raised = None if state.lost else before.issued if before is not None else 0
        renew(state, now)
        return state, raised

    def _current(self, name: str, seen: Seen | None, create: int | None) -> tuple[State, int | None]:
        """A counter to claim from or to read, and the count before a loss raised it."""
        state, raised = self._recover(name, seen)
        if state is not None and state.lost:
            raise StateLost(name)
        if state is None or state.deleted:
            if create is None:
                raise _missing(name, state)
            return self._start(name, seen, create, 0 if state is None else state.revision + 1), None
        return state, raised

    def _start(self, name: str, seen: Seen | None, limit: int, revision: int, restart: bool = False) -> State:
        """Begin an epoch at 0."""
        before = self._states[name].epoch if name in self._states else 0
        last = max(before, seen.epoch if seen is not None else 0)
        epoch = max(self._now(), last + 1)
        state = State(epoch, revision, 0, limit, base=ALL if restart else -before, began=epoch)
        self._states[name] = state
        return state

    def _remember(self, name: str, epoch: int, key: str, replay: Replay) -> None:
        kept, seconds = (self._admitted, KEY_SECONDS) if replay.admitted else (self._refused, REFUSED_KEY_SECONDS)
        kept.pop((name, key), None)
        kept[name, key] = (self._seconds() + seconds, epoch, replay)

    def _remembered(self, name: str, state: State, key: str) -> Replay | None:
        """The first answer to a key: an admission of this window or one before it, a refusal of this one."""
        now = self._seconds()
        for kept in (self._admitted, self._refused):
            while kept and next(iter(kept.values()))[0] <= now:
                kept.popitem(last=False)
        for kept, since in ((self._admitted, state.began), (self._refused, state.epoch)):
            found = kept.get((name, key))
            if found is not None and found[1] >= since:
                return found[2]
        return None


def _missing(name: str, state: State | None) -> NoSuchCounter:
    return NoSuchCounter(name, None if state is None else Seen(state.epoch, state.revision, 0, 0, deleted=True))


def _ends(rules: tuple[int, int, str, str], now: int) -> int:
    """Where the window ends in which a counter with such rules is; 0: nowhere."""
    _, _, every, zone = rules
    return window(every, zone, now).ends if every else 0


def _rules(state: State | Seen) -> tuple[int, int, str, str]:
    return state.most, state.each, state.every, state.zone


def _changed(kept: tuple[int, int, str, str], rules: Rules) -> tuple[int, int, str, str]:
    """The rules that a counter has after it was given some."""
    most, each, every, zone = kept
    return (
        most if rules.most is None else rules.most,
        each if rules.each is None else rules.each,
        every if rules.every is None else rules.every,
        zone if rules.zone is None else rules.zone,
    )
