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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pythonricing.counting.counters import Counters
    from pythonricing.counting.model import Counter
    from pythonricing.telemetry.metrics import Metrics

#: Counters whose state is shown.
MAX_SHOWN = 500
#: Seconds for which a worker shows the same state of the store, and waits for it.
FRESH_SECONDS = 1.0
#: Seconds between two events.
TICK_SECONDS = 1.0


class Shown(msgspec.Struct):
    """A counter in an event; `refused` counts the claims that this server has refused."""

    name: str
    count: int
    limit: int
    epoch: int
    lost: bool
    refused: int


class Event(msgspec.Struct):
    """The counters at a moment, in milliseconds since 1970; no counters while the store doesn't answer.

    `server` tells servers apart, because `refused` is what this one has refused on all counters.
    """

    time: int
    server: int
    refused: int
    counters: list[Shown] | None


class Snapshot:
    """The store's counters as they were at most FRESH_SECONDS ago, however many ask."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._task: asyncio.Task[list[Counter] | None] | None = None
        self._taken = 0.0

    async def take(self) -> list[Counter] | None:
        """The first MAX_SHOWN counters; None while the store doesn't answer."""
        now = asyncio.get_running_loop().time()
        if self._task is None or now - self._taken >= FRESH_SECONDS:
            self._taken = now
            self._task = asyncio.create_task(self._read())
        return await asyncio.shield(self._task)

    async def _read(self) -> list[Counter] | None:
        try:
            async with asyncio.timeout(FRESH_SECONDS):
                return await self._counters.browse(MAX_SHOWN)
        except (StoreError, TimeoutError):
            return None


class Feed:
    """Everybody who watches gets the same events, encoded once and made only while somebody does."""

    def __init__(self, snapshot: Snapshot, metrics: Metrics) -> None:
        self._snapshot = snapshot
        self._metrics = metrics
        self._server = zlib.crc32(f"{platform.node()} {metrics.folder or os.getpid()}".encode())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0
        self.closed = False
        #: The next event as JSON; empty if there will be none.
        self.next: asyncio.Future[bytes]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Events come inside of this."""
        if self.watchers == 0:
            self._loop = asyncio.get_running_loop()
            self.next = self._loop.create_future()
            self._task = self._loop.create_task(self._run())
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1
            if self.watchers == 0 and self._task is not None:
                self._task.cancel()

    def close(self) -> None:
        """Tell everybody that there will be no more events; a signal's handler may call it."""
        self.closed = True
        if self._loop is not None and self.watchers:
            self._loop.call_soon_threadsafe(self._tell, b"")

    async def _run(self) -> None:
        while not self.closed:
            self._tell(msgspec.json.encode(await self._event()))
            await asyncio.sleep(TICK_SECONDS)

    def _tell(self, event: bytes) -> None:
        told, self.next = self.next, asyncio.get_running_loop().create_future()
        told.set_result(event)

    async def _event(self) -> Event:
        counters = await self._snapshot.take()
        self._metrics.flush()
        refusals = await asyncio.to_thread(self._metrics.refusals)
        shown = None
        if counters is not None:
            shown = [
                Shown(each.name, each.count, each.limit, each.epoch, each.lost, refusals.get(each.name, 0))
                for each in counters
            ]
        return Event(int(time.time() * 1000), self._server, sum(refusals.values()), shown)
