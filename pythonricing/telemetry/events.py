"""The counters as they move: one event a second for everybody who watches them."""

from __future__ import annotations

import asyncio
import os
import platform
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting.model import StoreError
from pythonricing.telemetry.history import Second  # noqa: TC001 (msgspec reads it)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pythonricing.counting.counters import Counters
    from pythonricing.counting.model import Counter
    from pythonricing.telemetry.metrics import Metrics

#: Counters that are read, by name; more would take too much of a worker's time.
MAX_READ = 10_000
#: Counters that are read in one go, which keeps the event loop for 5 ms.
PAGE = 500
#: Seconds for which a worker shows the same state of the store; and how many times as long as reading it took, if that
#: is more, so that reading takes a twentieth of a worker's time at most.
FRESH_SECONDS, FRESH_TIMES = 1.0, 20
#: Seconds that a store has for a page before it is said not to answer.
PAGE_SECONDS = 1.0
#: Seconds between two events.
TICK_SECONDS = 1.0
#: Seconds of the history that every event tells again, because late ones are added to.
RECENT = 5


class Shown(msgspec.Struct):
    """A counter in an event; `admitted` and `refused` count the claims of this server."""

    name: str
    count: int
    limit: int
    epoch: int
    lost: bool
    admitted: int
    refused: int
    #: How many of the count are out on leases.
    leased: int = 0
    #: How many of the count are on holds.
    held: int = 0
    #: When it renews, in milliseconds since 1970 by the store's clock; 0: never.
    renews: int = 0


class Event(msgspec.Struct):
    """What has changed, at a moment in milliseconds since 1970.

    `counters` are those that changed since the event before and `gone` those that were deleted; or, in a `whole` event,
    which is the first one, all there are, up to the first MAX_READ by name (then there is `more`). While the store is
    `away`, what was told before is the newest that is known.

    `seconds` is what this server admitted and refused in each of the last seconds, all its workers together; in a whole
    event, of the last five minutes. `node` and `store` name the server's machine and its store, and `server` tells this
    run of it from others, because `admitted` and `refused` are what this one has counted.
    """

    time: int
    server: int
    node: str
    store: str
    whole: bool
    seconds: list[Second]
    counters: list[Shown]
    gone: list[str] = []
    more: bool = False
    away: bool = False


class Snapshot:
    """The store's counters as they were a moment ago, however many ask."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._task: asyncio.Task[list[Counter] | None] | None = None
        self._fresh_until = 0.0

    async def take(self) -> list[Counter] | None:
        """The first MAX_READ counters by name; None while the store doesn't answer."""
        now = asyncio.get_running_loop().time()
        if self._task is None or (self._task.done() and now >= self._fresh_until):
            self._task = asyncio.create_task(self._read(now))
        return await asyncio.shield(self._task)

    async def _read(self, began: float) -> list[Counter] | None:
        loop = asyncio.get_running_loop()
        read: list[Counter] = []
        try:
            while len(read) < MAX_READ:
                async with asyncio.timeout(PAGE_SECONDS):
                    page = await self._counters.browse(PAGE, read[-1].name if read else "", reachable_only=True)
                read += page
                if len(page) < PAGE:
                    break
        except (StoreError, TimeoutError):
            return None
        finally:
            self._fresh_until = began + max(FRESH_SECONDS, FRESH_TIMES * (loop.time() - began))
        return read


class Feed:
    """Everybody who watches gets the same events, encoded once and made only while somebody does.

    `store` is the store's URL, without a password.
    """

    def __init__(self, snapshot: Snapshot, metrics: Metrics, store: str) -> None:
        self._snapshot = snapshot
        self._metrics = metrics
        self._node = platform.node()
        self._store = store
        self._server = zlib.crc32(f"{self._node} {metrics.folder or os.getpid()}".encode())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: asyncio.Future[None]
        self._shown: dict[str, Shown] = {}
        self._event: Event
        self._change = self._whole = b""
        self.watchers = 0
        self.closed = False
        #: How many events there were since somebody watches.
        self.number = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Events come inside of this."""
        if self.watchers == 0:
            self._loop = asyncio.get_running_loop()
            self._told = self._loop.create_future()
            self.number = 0
            self._shown = {}
            self._task = self._loop.create_task(self._run())
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1
            if self.watchers == 0 and self._task is not None:
                self._task.cancel()

    async def after(self, number: int) -> bytes:
        """The next event after this number, as JSON: a whole one if others were missed. Empty: there is none."""
        if self.number == number and not self.closed:
            await asyncio.shield(self._told)  # it is everybody's: whoever leaves must not cancel it
        if self.closed:
            return b""
        if number and number == self.number - 1:
            return self._change
        if not self._whole:
            self._whole = _encode(self._event, whole=True, counters=list(self._shown.values()), gone=[])
        return self._whole

    def close(self) -> None:
        """Tell everybody that there will be no more events; a signal's handler may call it."""
        self.closed = True
        if self._loop is not None and self.watchers:
            self._loop.call_soon_threadsafe(self._tell)

    async def _run(self) -> None:
        while not self.closed:
            state = await self._snapshot.take()
            self._metrics.flush()
            claims, seconds = await asyncio.to_thread(lambda: (self._metrics.claims(), self._metrics.seconds()))
            now = time.time()
            changed, gone = ([], []) if state is None else self._compare(state, claims)
            self._event = Event(
                *(int(now * 1000), self._server, self._node, self._store, False, seconds, changed, gone),
                more=len(self._shown) >= MAX_READ,
                away=state is None,
            )
            recent = [second for second in seconds if second[0] >= int(now) - RECENT]
            self._change, self._whole = _encode(self._event, seconds=recent), b""
            self.number += 1
            self._tell()
            await asyncio.sleep(TICK_SECONDS)

    def _compare(self, state: list[Counter], claims: dict[str, dict[str, int]]) -> tuple[list[Shown], list[str]]:
        """What has changed since the event before, and which counters are gone."""
        before, self._shown = self._shown, {}
        for each in state:
            counted = claims.get(each.name, {})
            self._shown[each.name] = Shown(
                *(each.name, each.count, each.limit, each.epoch, each.lost),
                *(counted.get("admitted", 0), counted.get("refused", 0), each.leased, each.held, each.ends // 1000),
            )
        changed = [shown for name, shown in self._shown.items() if before.get(name) != shown]
        return changed, [name for name in before if name not in self._shown]

    def _tell(self) -> None:
        told, self._told = self._told, asyncio.get_running_loop().create_future()
        told.set_result(None)


def _encode(event: Event, **changes: object) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(event, **changes))
