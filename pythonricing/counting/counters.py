"""The heart: claims gather into batches, batches become verdicts, verdicts become answers. No I/O of its own.

At most one batch of a counter is on its way from a worker. Claims that arrive meanwhile form the next one, so that
batches grow with load and nobody waits for a timer (group commit: DeWitt et al., "Implementation Techniques for Main
Memory Database Systems", SIGMOD 1984). Under load a batch also gives way to the event loop for a moment, for the
claims that the last answers have set free (see Counters._gather).
"""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections import deque
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import (
    RECEIPT_SECONDS,
    TOMBSTONE_SECONDS,
    Batch,
    NoSuchCounter,
    Seen,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from pythonricing.counting.store import trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pythonricing.counting.journal import Journal
    from pythonricing.counting.model import Counter, Verdict
    from pythonricing.counting.store import Store

DEFAULT = "default"
#: The limit of a new `default` when the settings give none.
DEFAULT_LIMIT = 100
#: Claims that a worker holds while they wait for the store.
MAX_WAITING = 8192
#: Claims in one batch; Redis executes nothing else meanwhile.
MAX_BATCH = 1024
#: Times in a row that a batch gives way to other work which brings no further claim.
YIELDS = 4
#: Counters that a worker remembers.
MAX_LANES = 65_536
#: Seconds after which a worker asks whether whoever made a claim still waits for it.
WATCH_SECONDS = 0.25
#: Seconds for which an unanswered batch is sent again.
RESEND_SECONDS = RECEIPT_SECONDS / 6
#: Seconds for which refusals from memory add up before the journal is told of them.
REFUSED_SECONDS = 0.1
#: Counters of which a worker tells a store that was connected again what it has seen of them.
MAX_TOLD = 1000
#: Seconds after which a worker no longer trusts what it knows of a counter; tombstones live longer.
FORGET_SECONDS = TOMBSTONE_SECONDS / 7


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a claim got. Admitted: it owns the numbers `request_count - n + 1` to `request_count`."""

    admitted: bool
    request_count: int
    limit: int


class Overloaded(StoreUnavailable):
    """More claims wait for the store than a worker holds."""


class KeyReused(Exception):
    """The idempotency key was used before for a claim of another size."""


class _Claim(msgspec.Struct):
    """A claim that waits for its answer."""

    size: int
    key: str | None
    future: asyncio.Future[Answer]
    deadline: float
    left: Callable[[], Awaitable[None]] | None


class _Lane:
    """What a worker knows of one counter, and its claims."""

    __slots__ = (
        "expected",
        "halted",
        "halted_until",
        "in_flight",
        "lost",
        "name",
        "refused",
        "seen",
        "seen_at",
        "task",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[_Claim] = deque()
        self.in_flight: list[_Claim] = []
        self.expected = 0  # claims for which a batch gives way
        self.task: asyncio.Task[None] | None = None
        self.seen: Seen | None = None
        self.seen_at = 0.0
        self.halted: asyncio.Future[Answer] | None = None  # the refusal
        self.halted_until = 0.0
        self.refused = 0  # from memory, and not told yet
        self.lost = False


class Counters:
    """All counters of a worker.

    `limit` is the limit that the settings give `default`, if any; `timeout` the seconds a claim waits for the store;
    `halt_cache` the seconds for which a halted counter is refused from memory.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        limit: int | None = None,
        timeout: float = 2.0,
        halt_cache: float = 0.1,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._store = store
        self._journal = journal
        self._limit = limit
        self._timeout = timeout
        self._halt_cache = halt_cache
        self._max_waiting = max_waiting
        self._worker = ""
        self._sequence = 0
        self._lanes: dict[str, _Lane] = {}
        self._busy: set[_Lane] = set()
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._watches: set[asyncio.Task[None]] = set()
        self._configured = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start serving; the store may come later."""
        self._loop = asyncio.get_running_loop()
        # Here and not when it is made: a server may fork its workers later.
        self._worker = uuid.uuid4().hex
        self._store.on_connect = self._on_connect
        await self._store.open()
        if self._limit is None:
            self._configured.set()
        else:
            self._opening = asyncio.create_task(self._configure(self._limit))

    async def close(self) -> None:
        """Wait for the claims on their way, at most as long as a claim may take, then let go of the store."""
        for task in (self._opening, self._telling):
            if task is not None:
                task.cancel()
        tasks = [lane.task for lane in self._busy if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._timeout)
        for lane in self._busy:
            if lane.in_flight:
                self._journal.in_doubt(lane.name, len(lane.in_flight))
        for task in tasks:
            task.cancel()
        for lane in self._lanes.values():
            self._tell_refused(lane)
        for watch in self._watches:
            watch.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._store.close()

    def claim(
        self, name: str, size: int = 1, key: str | None = None, left: Callable[[], Awaitable[None]] | None = None
    ) -> asyncio.Future[Answer]:
        """Claim `size` of a counter's numbers, all or nothing.

        `left` returns once nobody waits for the answer any more; it is only asked about a claim that takes long.
        The future raises NoSuchCounter, KeyReused, StateLost, and StoreUnavailable if the store didn't answer in time;
        Overloaded is raised at once.
        """
        lane = self._lanes.get(name) or self._lane(name)
        now = self._loop.time()
        if lane.halted is not None and key is None:
            if now < lane.halted_until:
                if lane.refused == 0:
                    self._loop.call_later(REFUSED_SECONDS, self._tell_refused, lane)
                lane.refused += 1
                return lane.halted
            lane.halted = None
        if self._pending >= self._max_waiting:
            self._journal.unavailable(name, 1)
            raise Overloaded("too many claims are waiting for the store")
        future: asyncio.Future[Answer] = self._loop.create_future()
        lane.waiting.append(_Claim(size, key, future, now + self._timeout, left))
        self._pending += 1
        if lane.task is None:
            self._busy.add(lane)
            lane.task = self._loop.create_task(self._drain(lane))
        if self._timer is None:
            self._timer = self._loop.call_at(now + min(self._timeout, WATCH_SECONDS), self._expire)
        return future

    async def read(self, name: str) -> Counter:
        """The counter as the store has it. Raises NoSuchCounter, StateLost, StoreUnavailable."""
        lane = self._lanes.get(name)
        try:
            async with self._answered(name):
                counter = await self._read(name, lane)
        except StateLost:
            self._lose(lane or self._lane(name))
            raise
        if counter.raised is not None:
            self._journal.raised(name, counter.raised, counter.count)
        if lane is not None:
            self._see(lane, Seen(counter.epoch, counter.count, counter.limit))
        return counter

    async def browse(self, limit: int) -> list[Counter]:
        """The first `limit` counters by name, as the store has them. Raises StoreUnavailable."""
        async with self._answered():
            return await self._store.browse(limit)

    async def _read(self, name: str, lane: _Lane | None) -> Counter:
        while True:
            try:
                return await self._store.read(name, self._known(lane), self._create_with(name))
            except StoreUnavailable:
                await asyncio.sleep(0.02)
                await self._store.ready(name)

    async def check(self) -> list[str] | None:
        """Whether claims can be served. Raises StoreUnavailable or StateLost.

        Returns which of the store's servers don't answer while others do, or None where there is only one.
        """
        async with self._answered():
            unreachable = await self._store.probe()
        for lane in [lane for lane in self._lanes.values() if lane.lost]:
            if unreachable and self._store.server_of(lane.name) in unreachable:
                continue
            try:
                await self.read(lane.name)
            except NoSuchCounter:
                if lane.task is None:  # another lane must not send while this one does
                    self._lanes.pop(lane.name, None)
        if not unreachable or self._store.server_of(DEFAULT) not in unreachable:
            await self.read(DEFAULT)
        return unreachable

    async def put(self, name: str, limit: int) -> tuple[Counter, bool]:
        """Create a counter, or change its limit and keep its count. Returns it and whether it was created."""
        return await self._change(name, limit)

    async def delete(self, name: str) -> None:
        """Forget a counter; `default` starts over with the limit of the settings. Raises NoSuchCounter."""
        if name == DEFAULT:
            await self._change(name, self._create_with(name), restart=True)
            return
        async with self._answered(name):
            await self._store.delete(name)
        lane = self._lanes.get(name)
        if lane is not None:
            lane.halted, lane.seen = None, None

    async def _change(self, name: str, limit: int | None, restart: bool = False) -> tuple[Counter, bool]:
        async with self._answered(name):
            counter, created = await self._store.put(name, limit, restart=restart)
        lane = self._lanes.get(name)
        if lane is not None:
            lane.halted = None
            self._see(lane, Seen(counter.epoch, counter.count, counter.limit))
        return counter, created

    @asynccontextmanager
    async def _answered(self, name: str | None = None) -> AsyncIterator[None]:
        """Run an operator's command on the connected store, within the timeout."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._store.ready(name)
                yield
        except TimeoutError:
            raise StoreUnavailable(f"the store did not answer in time: {trouble(self._store)}") from None

    def _on_connect(self) -> None:
        """The store was connected, perhaps to a server that knows less: tell it what this worker has seen."""
        if self._telling is not None:
            self._telling.cancel()
        self._telling = self._loop.create_task(self._tell_seen())

    async def _tell_seen(self) -> None:
        """Read the counters seen last, one after the other, so that a loss shows before it does harm.

        A worker that claims tells what it has seen anyway; but an idle one may have seen more.
        """
        lanes = sorted((lane for lane in self._lanes.values() if lane.seen), key=lambda lane: lane.seen_at)
        for lane in lanes[: -MAX_TOLD - 1 : -1]:
            connected = {server.name: server.connected for server in self._store.servers()}
            if lane.task is None and not lane.lost and connected.get(self._store.server_of(lane.name), True):
                with suppress(StoreError):
                    await self.read(lane.name)

    def _lane(self, name: str) -> _Lane:
        if len(self._lanes) >= MAX_LANES:
            idle = next((lane for lane in self._lanes.values() if lane.task is None and not lane.lost), None)
            if idle is not None:
                del self._lanes[idle.name]
        lane = self._lanes[name] = _Lane(name)
        return lane

    def _known(self, lane: _Lane | None) -> Seen | None:
        if lane is None or self._loop.time() - lane.seen_at > FORGET_SECONDS:
            return None
        return lane.seen

    def _create_with(self, name: str) -> int | None:
        if name != DEFAULT:
            return None
        return DEFAULT_LIMIT if self._limit is None else self._limit

    async def _configure(self, limit: int) -> None:
        """Give `default` the limit of the settings, before the first claim on it."""
        while not self._configured.is_set():
            await self._store.ready(DEFAULT)
            try:
                await self._store.configure(DEFAULT, limit)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            except StoreError as error:
                # A lost counter stays lost until an operator speaks; claims will say so.
                self._journal.failed(DEFAULT, error)
                self._configured.set()
            else:
                self._configured.set()

    async def _drain(self, lane: _Lane) -> None:
        """Send a lane's claims, batch after batch, until none waits."""
        try:
            while lane.waiting:
                if lane.name == DEFAULT and not self._configured.is_set():
                    await self._configured.wait()
                await self._store.ready(lane.name)
                if len(lane.waiting) < lane.expected:
                    await self._gather(lane)
                self._board(lane)
                if not lane.in_flight:
                    continue
                try:
                    composition, verdict = await self._send(lane)
                    lane.expected = min(MAX_BATCH, (len(lane.in_flight) + len(lane.waiting)) * 3 // 4)
                    self._settle(lane, composition, verdict)
                except Exception as error:
                    self._fail(lane, error)
                self._pending -= len(lane.in_flight)
                lane.in_flight = []
        finally:
            lane.task = None
            self._busy.discard(lane)

    async def _gather(self, lane: _Lane) -> None:
        """Give way to the event loop and to the machine's other processes while that brings further claims.

        Clients that were just answered come back with their next claims in moments. Sent at once, the claims that
        waited would leave without them, and two half batches would take turns where one whole batch costs half. So up
        to three quarters of as many as there lately were are waited for: not for any time, but only while giving
        way, which takes microseconds when nothing else is to be done, still brings some.
        """
        yields = YIELDS
        while yields and (waiting := len(lane.waiting)) < lane.expected:
            os.sched_yield()
            await asyncio.sleep(0)
            yields = YIELDS if len(lane.waiting) > waiting else yields - 1

    def _board(self, lane: _Lane) -> None:
        """Take the next batch from the claims that wait, without those that were given up."""
        while lane.waiting and len(lane.in_flight) < MAX_BATCH:
            claim = lane.waiting.popleft()
            if claim.future.done():
                self._pending -= 1
            else:
                lane.in_flight.append(claim)

    async def _send(self, lane: _Lane) -> tuple[list[_Claim], Verdict]:
        """Send the batch until the store says what became of it.

        Returns the claims that the verdict is about. Each time it is sent again, claims given up meanwhile stay
        behind: unless an earlier composition was executed already, nobody's numbers are spent on them.
        """
        # Kept for the repeats: other counters' batches take further numbers while this one is on its way.
        self._sequence = sequence = self._sequence + 1
        compositions = [lane.in_flight]
        give_up = self._loop.time() + RESEND_SECONDS
        failures = 0
        while True:
            claims = compositions[-1]
            batch = Batch(
                lane.name,
                self._worker,
                sequence,
                len(compositions) - 1,
                [claim.size for claim in claims],
                [claim.key for claim in claims] if any(claim.key is not None for claim in claims) else None,
                self._known(lane),
                self._create_with(lane.name),
            )
            sent = self._loop.time()
            try:
                verdict = await self._store.claim(batch)
                self._journal.answered(lane.name, len(claims), self._loop.time() - sent)
                return compositions[verdict.attempt], verdict
            except StoreRejected:
                if failures == 0:
                    raise
                # Nothing was executed now, but an earlier attempt may have been.
            except StoreUnavailable:
                pass
            if self._loop.time() > give_up:
                self._journal.in_doubt(lane.name, len(claims))
                raise StoreUnavailable("the store did not answer")
            if failures:
                ceiling = min(0.02 * 2**failures, 0.1)  # the store's own link backs off further
                await asyncio.sleep(random.uniform(ceiling / 2, ceiling))
            failures += 1
            await self._store.ready(lane.name)
            left = [claim for claim in claims if not claim.future.done()]
            if len(left) < len(claims):
                compositions.append(left)

    def _settle(self, lane: _Lane, claims: list[_Claim], verdict: Verdict) -> None:
        """Answer the claims of a batch: the same greedy grant that the store made (see Verdict)."""
        count, limit = verdict.before, verdict.limit
        replays = iter(verdict.replays)
        admitted: list[tuple[int, int]] = []
        orphaned: list[tuple[int, int]] = []
        refused = 0
        for claim in claims:
            future, size = claim.future, claim.size
            replay = None if claim.key is None else next(replays)
            if replay is not None:
                if future.done():
                    pass
                elif replay.size != size:
                    future.set_exception(KeyReused())
                else:
                    future.set_result(Answer(replay.admitted, replay.count, replay.limit))
            elif count + size <= limit:
                count += size
                if future.done():
                    orphaned.append((count, size))
                else:
                    future.set_result(Answer(True, count, limit))
                    admitted.append((count, size))
            elif not future.done():
                future.set_result(Answer(False, count, limit))
                refused += 1
        self._see(lane, Seen(verdict.epoch, count, limit))
        if verdict.raised is not None:
            self._journal.raised(lane.name, verdict.raised, verdict.before)
        if count >= limit and self._halt_cache:
            lane.halted = self._loop.create_future()
            lane.halted.set_result(Answer(False, count, limit))
            lane.halted_until = self._loop.time() + self._halt_cache
        if admitted or refused:
            self._journal.settled(lane.name, limit, admitted, refused)
        if orphaned:
            self._journal.orphaned(lane.name, limit, orphaned)

    def _fail(self, lane: _Lane, error: Exception) -> None:
        """Tell the claims of a batch why there is no verdict."""
        unanswered = [claim.future for claim in lane.in_flight if not claim.future.done()]
        if isinstance(error, NoSuchCounter):
            if self._lanes.get(lane.name) is lane and not lane.waiting:
                del self._lanes[lane.name]
        else:
            self._journal.unavailable(lane.name, len(unanswered))
            if isinstance(error, StateLost):
                self._lose(lane)
            elif not isinstance(error, StoreUnavailable):
                self._journal.failed(lane.name, error)
                error = StoreUnavailable(f"the store answered with an error: {error}")
        for future in unanswered:
            future.set_exception(type(error)(*error.args))

    def _see(self, lane: _Lane, seen: Seen) -> None:
        """Remember the newest state of a counter; an older one comes from a receipt."""
        known = lane.seen
        if known is None or seen.epoch > known.epoch or (seen.epoch == known.epoch and seen.count >= known.count):
            lane.seen = seen
            lane.seen_at = self._loop.time()
        if lane.lost:
            lane.lost = False
            self._journal.found(lane.name)

    def _tell_refused(self, lane: _Lane) -> None:
        if lane.refused:
            refused, lane.refused = lane.refused, 0
            self._journal.refused(lane.name, refused)

    def _lose(self, lane: _Lane) -> None:
        if not lane.lost:
            lane.lost = True
            self._journal.lost(lane.name, lane.seen)

    def _expire(self) -> None:
        """Give up the claims that have waited too long, or whose client has left; one timer for all."""
        self._timer = None
        now = self._loop.time()
        deadlines: list[float] = []
        for lane in self._busy:
            given_up = 0
            for claim in lane.in_flight:
                if not claim.future.done() and claim.deadline <= now:
                    claim.future.set_exception(StoreUnavailable("the store did not answer in time"))
                    given_up += 1
            while lane.waiting and lane.waiting[0].deadline <= now:
                claim = lane.waiting.popleft()
                self._pending -= 1
                if not claim.future.done():
                    claim.future.set_exception(StoreUnavailable("the store did not answer in time"))
                    given_up += 1
            if given_up:
                self._journal.unavailable(lane.name, given_up)
            deadlines += [claim.deadline for claim in lane.in_flight if not claim.future.done()][:1]
            deadlines += [claim.deadline for claim in lane.waiting][:1]
            self._watch(lane, now - WATCH_SECONDS + self._timeout)
        if deadlines:
            self._timer = self._loop.call_at(min(*deadlines, now + WATCH_SECONDS), self._expire)

    def _watch(self, lane: _Lane, deadline: float) -> None:
        """Ask about the clients of claims that have waited for a while: those with at most this deadline."""
        for claim in chain(lane.in_flight, lane.waiting):
            if claim.deadline > deadline:
                break
            if claim.left is not None and not claim.future.done():
                watch = self._loop.create_task(self._give_up_without(claim.left, claim.future))
                self._watches.add(watch)
                watch.add_done_callback(self._watches.discard)
                claim.left = None

    async def _give_up_without(self, left: Callable[[], Awaitable[None]], future: asyncio.Future[Answer]) -> None:
        await left()
        if not future.done():
            future.set_exception(StoreUnavailable("the client left before the store answered"))
