"""All counters of a worker: look-up, the operators' words, checks, opening and closing."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from pythonricing.counting import arguments
from pythonricing.counting.lane import Lane, Worker
from pythonricing.counting.model import (
    DEFAULT,
    HOLD,
    HOLD_BYTES,
    KEEP,
    MAX_NUMBERS,
    BadRules,
    HoldExpired,
    HoldResolved,
    NoSuchCounter,
    NoSuchHold,
    Rules,
    StateLost,
    StoreError,
    StoreUnavailable,
    TooMany,
    Wish,
    Word,
    ZoneUnknown,
)
from pythonricing.counting.rules import total
from pythonricing.counting.store import trouble
from pythonricing.counting.windows import check
from pythonricing.settings import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from pythonricing.counting.journal import Journal
    from pythonricing.counting.model import Action, Answer, Counter, How, Resolution, Run, Seen
    from pythonricing.counting.store import Store

#: Claims that a worker holds while they wait for the store; those on one counter are at most half of them.
MAX_WAITING = 16_384
#: Counters that a worker remembers.
MAX_LANES = 65_536
#: Seconds after which a worker asks whether whoever made a claim still waits for it.
ASK_SECONDS = 0.25
#: Seconds that claims get at the end for which nobody waits any more, since the server has cut them off.
UNWANTED_SECONDS = 1.0
#: Counters of which a worker tells a store that was connected again what it has seen of them.
MAX_TOLD = 1000
#: Seconds after which the limit of the settings is tried again.
CONFIGURE_SECONDS = 0.1

T = TypeVar("T")


class Condition(msgspec.Struct, frozen=True):
    """What can't be served while the rest is."""

    #: Which of the store's servers don't answer; None where there is only one.
    unreachable: list[str] | None
    #: Counters whose state the store has lost, as far as this worker knows.
    lost: list[str]


class Counters:
    """All counters of a worker.

    `limit` is the limit that the settings give `default`, if any; `timeout` the seconds a claim waits for the store;
    `halt_cache` the seconds for which a halted counter is refused from memory; `lease` the seconds of its own demand
    that it takes ahead, 0: nothing. `clock` tells monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        limit: int | None = None,
        timeout: float = 2.0,
        halt_cache: float = 0.1,
        lease: float = 0.01,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._journal = journal
        self._timeout = timeout
        self._worker = Worker(store, journal, limit, timeout, halt_cache, max_waiting, lease, clock)
        self._worker.began = self._tick_soon
        self._lanes = self._worker.lanes
        self._timer: asyncio.TimerHandle | None = None
        self._asked: set[asyncio.Task[None]] = set()
        self._configuring: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start serving; the store may come later."""
        # Here and not when it is made: a server may fork its workers later.
        self._worker.loop = self._loop = asyncio.get_running_loop()
        self._worker.id = uuid.uuid4().hex
        self._store.on_connect = self._on_connect
        self._store.on_disconnect = self._on_disconnect
        await self._store.open()
        if self._worker.limit is None:
            self._worker.configured.set()
        else:
            self._configuring = asyncio.create_task(self._configure(self._worker.limit))

    async def close(self) -> None:
        """Wait for the claims on their way, at most as long as a claim may take, then let go of the store."""
        for task in (self._configuring, self._telling):
            if task is not None:
                task.cancel()
        for lane in [*self._lanes.values()]:
            lane.lease.stop()
            lane.end_lease()
        tasks = [lane.task for lane in self._worker.busy if lane.task is not None]
        if tasks:
            wanted = any(lane.wanted for lane in self._worker.busy)
            await asyncio.wait(tasks, timeout=self._timeout if wanted else min(self._timeout, UNWANTED_SECONDS))
        for lane in self._worker.busy:
            if lane.in_flight:
                self._journal.in_doubt(lane.name, lane.in_flight)
        for task in tasks:
            task.cancel()
        for lane in self._lanes.values():
            lane.tell_refused()
        self._worker.tell()
        for asked in self._asked:
            asked.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._store.close()

    def claim(
        self,
        name: str,
        size: int = 1,
        key: str | None = None,
        gone: Callable[[], Awaitable[None]] | None = None,
        *,
        hold: int = 0,
        claimant: str = "",
    ) -> asyncio.Future[Answer]:
        """Claim `size` of a counter's numbers, all or nothing.

        With `hold` they go back after so many seconds, 1 to MAX_HOLD_SECONDS, unless they are confirmed: the answer has
        the hold's id. `claimant` says for whom they are, on a counter that has a limit for each. `gone` returns once
        nobody waits for the answer any more; it is only asked about a claim that takes long.
        The future raises NoSuchCounter, KeyReused, TooMany, ClaimantMissing, ClaimantUnwanted, StateLost, and
        StoreUnavailable if the store didn't answer in time. Overloaded is raised at once; so are TypeError and
        ValueError for a `hold` or a `claimant` that can't be.
        """
        lane = self._lanes.get(name) or self._lane(name)
        if not (hold or claimant):
            return lane.claim(size, key, gone)
        hold, claimant = arguments.wish(hold, claimant)
        return lane.claim(size, key, gone, Wish(secrets.token_urlsafe(HOLD_BYTES) if hold else "", hold, claimant))

    async def read(self, name: str) -> Counter:
        """The counter as the store has it. Raises NoSuchCounter, StateLost, StoreUnavailable."""
        with self._told(name):
            async with self._answered(name):
                counter = await self._read(name)
        self._learn(counter)
        return counter

    def known(self) -> set[str]:
        """The counters that this worker remembers."""
        return set(self._lanes)

    async def browse(self, limit: int, after: str = "", *, reachable_only: bool = False) -> list[Counter]:
        """The first `limit` counters by name after `after`, as the store has them. Raises StoreUnavailable.

        With `reachable_only` those are left out whose server doesn't answer while others do.
        """
        async with self._answered():
            counters = await self._store.browse(limit, after, reachable_only=reachable_only)
        for counter in counters:
            if counter.expired:
                self._journal.expired(counter.name, counter.expired)
        return counters

    async def check(self) -> Condition:
        """Whether claims can be served at all, and which can't. Raises StoreUnavailable; StateLost if `default` is."""
        async with self._answered():
            unreachable = await self._store.probe()
        lost = []
        for name in [lane.name for lane in self._lanes.values() if lane.lost and lane.name != DEFAULT]:
            if unreachable and self._store.server_of(name) in unreachable:
                continue
            try:
                await self.read(name)
            except NoSuchCounter:
                pass
            except StateLost:
                lost.append(name)
        if not unreachable or self._store.server_of(DEFAULT) not in unreachable:
            await self.read(DEFAULT)
        return Condition(unreachable, lost)

    async def put(
        self, name: str, limit: int, most: int = 0, each: int = 0, every: str = "", zone: str = ""
    ) -> tuple[Counter, bool]:
        """Create a counter, or change its limit and its rules (see Rules) and keep its count.

        Returns it and whether it was created. Raises BadRules; TypeError and ValueError for what can't be; StateLost if
        this is the first to notice a loss: the next one ends that; and StoreUnavailable: it may have taken effect, but
        will not any more.
        """
        limit = arguments.whole("limit", limit, 0, MAX_COUNT)
        most, each = arguments.whole("most", most, 0, MAX_COUNT), arguments.whole("each", each, 0, MAX_COUNT)
        if each > limit:
            raise BadRules("each is above the limit")
        check(arguments.text("every", every), arguments.text("zone", zone))
        return await self._change(name, limit, Rules(most, each, every, zone), "change")

    async def confirm(self, name: str, id: str, number: int | None = None) -> tuple[Resolution, Counter]:
        """Make so many numbers of a hold (None: all) its claimant's for good; the others go back.

        Again it returns the same. Raises NoSuchHold, NoSuchCounter, HoldExpired, HoldResolved if it was released or
        another number was confirmed, TooMany if the hold has fewer numbers, StateLost, and StoreUnavailable as put;
        TypeError and ValueError for what can't be.
        """
        if number is not None:
            number = arguments.whole("n", number, 1, MAX_COUNT)
        resolution, counter = await self._resolve(name, id, "confirm", number)
        if resolution.outcome == "held":
            raise TooMany(resolution.size)
        if resolution.outcome != "confirmed" or total(resolution.numbers) != (number or resolution.size):
            raise HoldResolved(resolution)
        return resolution, counter

    async def release(self, name: str, id: str) -> tuple[Resolution, Counter]:
        """Give a hold's numbers back. Again it returns the same. Raises as confirm does; HoldResolved if confirmed."""
        resolution, counter = await self._resolve(name, id, "release", None)
        if resolution.outcome != "released":
            raise HoldResolved(resolution)
        return resolution, counter

    async def give_back(self, name: str, runs: Sequence[Run]) -> tuple[int, Counter]:
        """Give numbers back that somebody owns, all or nothing. Returns how many of them had not been before.

        Raises NoSuchNumber if one was never given; TooMany for more than MAX_NUMBERS; NoSuchCounter, StateLost, and
        StoreUnavailable as put does; TypeError and ValueError for what can't be.
        """
        runs = arguments.runs(runs)
        if total(runs) > MAX_NUMBERS:
            raise TooMany(MAX_NUMBERS)
        lane = self._lanes.get(name)
        if lane is not None:
            lane.end_lease()
        now: Counter | None = None

        async def look() -> None:
            nonlocal now
            now = await self._read(name)
            self._learn(now)

        def act(word: Word) -> Awaitable[tuple[int, Counter]]:
            # Of the epoch that it is now: numbers of the same name in a later one are others.
            assert now is not None
            return self._store.give_back(name, msgspec.structs.replace(word, seen=now.seen), runs)

        with self._told(name):
            given, counter = await self._speak(name, act, look)
        self._learn(counter).unhalt()
        self._journal.given_back(name, runs, given)
        return given, counter

    async def _resolve(self, name: str, id: str, action: Action, number: int | None) -> tuple[Resolution, Counter]:
        if not HOLD.fullmatch(arguments.text("hold", id)):
            raise NoSuchHold
        with self._told(name):
            resolution, counter = await self._speak(
                name, lambda word: self._store.resolve(name, word, id, action, number)
            )
        lane = self._learn(counter)
        if resolution is None:
            raise NoSuchHold
        if resolution.outcome == "expired":
            raise HoldExpired(resolution)
        lane.unhalt()
        if counter.settled:
            self._journal.resolved(name, counter.limit, resolution)
        return resolution, counter

    async def configure(self, name: str, limit: int) -> Counter:
        """Create a counter or set its limit, as settings do: no operator's word, so that what was lost stays lost.

        Raises StateLost, and StoreUnavailable as put does.
        """
        counter, _ = await self._change(name, limit, KEEP, "configure")
        return counter

    async def delete(self, name: str) -> None:
        """Forget a counter; `default` starts over. Raises NoSuchCounter, and StoreUnavailable as put does."""
        if name != DEFAULT:
            with self._told(name):
                seen = await self._speak(name, lambda word: self._store.delete(name, word))
            lane = self._lanes.get(name) or self._lane(name)
            lane.unhalt()
            lane.see(seen)
            return
        await self.restart(name)

    async def restart(self, name: str, limit: int | None = None) -> Counter:
        """Let a counter count from 0 again, also after a loss, and keep its limit, or have this one if it has none.

        Raises as delete does.
        """
        try:
            counter, _ = await self._change(name, None, KEEP, "restart")
        except NoSuchCounter:
            limit = self._worker.create_with(name) if limit is None else limit
            if limit is None:
                raise
            counter, _ = await self._change(name, limit, KEEP, "restart")
        return counter

    async def _change(self, name: str, limit: int | None, rules: Rules, how: How) -> tuple[Counter, bool]:
        with self._told(name):
            counter, created = await self._speak(name, lambda word: self._store.put(name, word, limit, rules, how))
        self._learn(counter).unhalt()
        return counter, created

    async def _speak(
        self, name: str, act: Callable[[Word], Awaitable[T]], look: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Have the store execute an operator's word: once, and never after this has raised. `look` goes before."""
        id = uuid.uuid4().hex
        end = self._loop.time() + self._timeout
        async with self._answered(name):
            if look is not None:
                await look()
            while True:
                try:
                    # Read anew for each server that it may come to. The clock was read before its reply came: what is
                    # left now is over there before it is over here.
                    clock = await self._store.clock(name)
                    return await act(Word(id, clock + int((end - self._loop.time()) * 1e6), self._known(name)))
                except StoreUnavailable:
                    await asyncio.sleep(0.02)
                    await self._store.ready(name)

    async def _read(self, name: str) -> Counter:
        while True:
            try:
                return await self._store.read(name, self._known(name), self._worker.create_with(name))
            except StoreUnavailable:
                await asyncio.sleep(0.02)
                await self._store.ready(name)

    @asynccontextmanager
    async def _answered(self, name: str | None = None) -> AsyncIterator[None]:
        """Run an operator's command on the connected store, within the timeout."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._store.ready(name)
                yield
        except TimeoutError:
            why = trouble(self._store)
            raise StoreUnavailable(f"the store did not answer in time{why and ': ' + why}") from None

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Remember what the store says of a counter that it can't answer for."""
        try:
            yield
        except StateLost:
            (self._lanes.get(name) or self._lane(name)).lose()
            raise
        except ZoneUnknown as error:
            self._journal.failed(name, error)
            raise
        except NoSuchCounter as error:
            lane = self._lanes.get(name)
            if lane is not None and lane.task is None:  # another lane must not send while this one does
                lane.miss(error)
            raise

    def _known(self, name: str) -> Seen | None:
        lane = self._lanes.get(name)
        return None if lane is None else lane.known()

    def _learn(self, counter: Counter) -> Lane:
        """Remember what was read of a counter."""
        lane = self._lanes.get(counter.name) or self._lane(counter.name)
        if counter.raised is not None:
            self._journal.raised(counter.name, counter.raised, counter.issued)
        if counter.expired:
            self._journal.expired(counter.name, counter.expired)
        lane.see(counter.seen)
        return lane

    def _on_disconnect(self) -> None:
        """A connection is gone: what was lent over it must not be given any more."""
        self._worker.breaks += 1
        for lane in [*self._lanes.values()]:
            if lane.lease.left:
                lane.end_lease()

    def _on_connect(self) -> None:
        """The store was connected, perhaps to a server that knows less: tell it what this worker has seen."""
        if self._telling is not None:
            self._telling.cancel()
        self._telling = self._loop.create_task(self._tell_seen())

    async def _tell_seen(self) -> None:
        """Read the counters seen last, one after the other, so that a loss shows before it does harm.

        A worker that claims tells what it has seen anyway; but an idle one may have seen more.
        """
        lanes = sorted((lane for lane in self._lanes.values() if lane.seen_at), key=lambda lane: lane.seen_at)
        for lane in lanes[: -MAX_TOLD - 1 : -1]:
            connected = {server.name: server.connected for server in self._store.servers()}
            if lane.task is None and not lane.lost and connected.get(self._store.server_of(lane.name), True):
                with suppress(StoreError):
                    await self.read(lane.name)

    def _lane(self, name: str) -> Lane:
        if len(self._lanes) >= MAX_LANES:
            idle = next((lane for lane in self._lanes.values() if lane.idle), None)
            if idle is not None:
                del self._lanes[idle.name]
        lane = self._lanes[name] = Lane(name, self._worker)
        return lane

    async def _configure(self, limit: int) -> None:
        """Give `default` the limit of the settings, before the first claim on it, whatever keeps the store from it."""
        while not self._worker.configured.is_set():
            await self._store.ready(DEFAULT)
            try:
                await self._change(DEFAULT, limit, KEEP, "configure")
            except StateLost:
                # A lost counter stays lost until an operator speaks; claims will say so.
                self._worker.configured.set()
            except StoreError as error:
                if not isinstance(error, StoreUnavailable):
                    self._journal.failed(DEFAULT, error)
                await asyncio.sleep(CONFIGURE_SECONDS)
            else:
                self._worker.configured.set()

    def _tick_soon(self) -> None:
        """Claims wait for the store: look after them."""
        if self._timer is None:
            self._timer = self._loop.call_later(min(self._timeout, ASK_SECONDS), self._tick)

    def _tick(self) -> None:
        """Give up the claims that have waited too long, or whose client has gone; one timer for all."""
        self._timer = None
        now = self._loop.time()
        next_tick = now + min(self._timeout, ASK_SECONDS)
        for lane in self._worker.busy:
            deadline = lane.expire(now)
            if deadline is not None:
                next_tick = min(next_tick, deadline)
            for asked in lane.ask_gone(now - ASK_SECONDS + self._timeout):
                self._asked.add(asked)
                asked.add_done_callback(self._asked.discard)
        if self._worker.busy:
            self._timer = self._loop.call_at(next_tick, self._tick)
