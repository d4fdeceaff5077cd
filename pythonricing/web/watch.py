"""The live page: one file without dependencies, and the counters once a second as Server-Sent Events."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from pythonricing.web.parts import Parts
from pythonricing.web.problems import Problem, stopping
from pythonricing.web.responses import NO_STORE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Send

    from pythonricing.telemetry.events import Feed

#: Streams of one worker: they must not crowd out claims.
MAX_WATCHERS = 256
#: Milliseconds after which a browser connects again.
RETRY = b"retry: 1000\n\n"

STREAM_HEADERS = {**NO_STORE, "content-type": "text/event-stream", "x-accel-buffering": "no"}
PAGE = Path(__file__).with_name("watch.html")


async def page(request: Request) -> Response:
    """The page, which may run its own script and style and connect back here, and nothing else."""
    body, headers = _page()
    return Response(body, headers=headers)


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    body = PAGE.read_bytes()
    script, style = (
        f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"
        for kind in ("script", "style")
        for inline in re.findall(rf"<{kind}>(.*?)</{kind}>".encode(), body, re.DOTALL)
    )
    policy = (
        f"default-src 'none'; {script}; {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return body, {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


async def events(request: Request) -> Response:
    """The counters as they move."""
    feed = Parts.of(request).feed
    if feed.closed:
        raise stopping()
    if feed.watchers >= MAX_WATCHERS:
        detail = f"{MAX_WATCHERS} watch this process already"
        raise Problem(503, "Too many watchers", detail, "too-many-watchers", {"retry-after": "1"})
    return Response(headers=STREAM_HEADERS) if request.method == "HEAD" else EventStream(feed)


class EventStream(StreamingResponse):
    """The feed's events, until it is closed or the client is gone."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(self._events(), headers=STREAM_HEADERS)
        self._feed = feed

    async def stream_response(self, send: Send) -> None:
        with self._feed.watched():
            await super().stream_response(send)

    async def _events(self) -> AsyncIterator[bytes]:
        yield RETRY
        number = 0
        while told := await self._feed.after(number):
            number = self._feed.number
            yield b"data: " + told + b"\n\n"
