"""The live page: one file without dependencies, and the counters once a second as Server-Sent Events."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import platform
import re
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pythonricing.web.api import NO_STORE, Endpoint, Problem, respond

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive, Scope, Send

    from pythonricing.counting.counters import Counters
    from pythonricing.telemetry.metrics import Metrics, Snapshot

#: Seconds between two events.
TICK_SECONDS = 1.0
#: Streams of one worker: they must not crowd out claims.
MAX_WATCHERS = 256
#: Milliseconds after which a browser connects again.
RETRY = b"retry: 1000\n\n"

PAGE = Path(__file__).with_name("watch.html")


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


class Feed:
    """Everybody who watches gets the same events, made once a second and only while somebody does."""

    def __init__(self, snapshot: Snapshot, metrics: Metrics) -> None:
        self._snapshot = snapshot
        self._metrics = metrics
        self._server = zlib.crc32(f"{platform.node()} {metrics.folder or os.getpid()}".encode())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0
        self.closed = False
        #: The next event; empty if there will be none.
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
        """End every stream; a signal's handler may call it."""
        self.closed = True
        if self._loop is not None and self.watchers:
            self._loop.call_soon_threadsafe(self._tell, b"")

    async def _run(self) -> None:
        while not self.closed:
            self._tell(await self._event())
            await asyncio.sleep(TICK_SECONDS)

    def _tell(self, event: bytes) -> None:
        told, self.next = self.next, asyncio.get_running_loop().create_future()
        told.set_result(event)

    async def _event(self) -> bytes:
        counters = await self._snapshot.take()
        self._metrics.flush()
        refusals = await asyncio.to_thread(self._metrics.refusals)
        shown = None
        if counters is not None:
            shown = [
                Shown(each.name, each.count, each.limit, each.epoch, each.lost, refusals.get(each.name, 0))
                for each in counters
            ]
        event = Event(int(time.time() * 1000), self._server, sum(refusals.values()), shown)
        return b"data: " + msgspec.json.encode(event) + b"\n\n"


class Events(Endpoint):
    """`GET /watch/events`: the counters as they move."""

    def __init__(self, counters: Counters, feed: Feed) -> None:
        super().__init__(counters)
        self._feed = feed

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        feed = self._feed
        if feed.closed or feed.watchers >= MAX_WATCHERS:
            raise Problem(
                503, "Not now", "this process is stopping, or too many watch it", headers=((b"retry-after", b"1"),)
            )
        headers = [(b"content-type", b"text/event-stream"), NO_STORE, (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] != "HEAD":
            gone = asyncio.create_task(_gone(receive))
            try:
                with feed.watched():
                    await self._stream(gone, send)
            finally:
                gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, gone: asyncio.Task[None], send: Send) -> None:
        body = RETRY
        while body and not gone.done():
            event = self._feed.next
            await send({"type": "http.response.body", "body": body, "more_body": True})
            either: tuple[asyncio.Future[Any], ...] = (gone, event)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            body = event.result() if event.done() else b""


async def _gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Page(Endpoint):
    """`GET /watch`: the page, which may run its own script and style and connect back here, and nothing else."""

    def __init__(self, counters: Counters) -> None:
        super().__init__(counters)
        self._body = PAGE.read_bytes()
        script, style = (
            f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"
            for kind in ("script", "style")
            for inline in re.findall(rf"<{kind}>(.*?)</{kind}>".encode(), self._body, re.DOTALL)
        )
        policy = (
            f"default-src 'none'; {script}; {style}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._headers = (
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache"),
        )

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, self._body, *self._headers)
