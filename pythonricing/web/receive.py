"""What is received of a request: the name of a counter, a body, and that the client is gone."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from pythonricing.settings import MAX_COUNT
from pythonricing.web.problems import Problem, stopping, unprocessable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope

#: Bytes of a request's body, at most.
MAX_BODY = 4096
#: Bytes of a query string, at most: parsing one of 60 KiB takes 43 ms, in which nobody else is answered.
MAX_QUERY = 1024
#: Seconds for the whole body of a request, and for the rest of it once the process is stopping.
BODY_SECONDS, LAST_SECONDS = 10, 1
SIZE = re.compile(r"[0-9]{1,16}")


class Bodies:
    """Reads requests' bodies: one that never comes must not hold its place, nor keep the worker from stopping."""

    def __init__(self) -> None:
        self._seconds = BODY_SECONDS
        self._waiting: set[asyncio.Timeout] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """A body. Raises Problem: 413 for more than MAX_BODY bytes, without reading on; 400 for half; 408; 503."""
        too_large = Problem(413, "Content too large", f"a body has at most {MAX_BODY} bytes")
        for header, value in scope["headers"]:
            if header == b"content-length" and (not value.isdigit() or int(value) > MAX_BODY):
                raise too_large
        received = b""
        more = True
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds) as timeout:
                self._waiting.add(timeout)
                try:
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise Problem(400, "Bad request", "the connection was closed before the body was complete")
                        received += message.get("body", b"")
                        if len(received) > MAX_BODY:
                            raise too_large
                        more = message.get("more_body", False)
                finally:
                    self._waiting.discard(timeout)
        except TimeoutError:
            if self._seconds == LAST_SECONDS:
                raise stopping() from None
            detail = f"the body was not complete within {BODY_SECONDS} seconds"
            raise Problem(408, "Request timeout", detail, headers={"connection": "close"}) from None
        return received

    def stop(self) -> None:
        """Give up those that don't come soon; a signal's handler may call it."""
        self._seconds = LAST_SECONDS
        if self._waiting and self._loop is not None:
            self._loop.call_soon_threadsafe(self._hurry)

    def _hurry(self) -> None:
        last = asyncio.get_running_loop().time() + LAST_SECONDS
        for timeout in self._waiting:
            if not timeout.expired():
                timeout.reschedule(min(last, timeout.when() or last))


def check_query(query: bytes) -> None:
    """Raises Problem 414 for a query string over MAX_QUERY bytes."""
    if len(query) > MAX_QUERY:
        raise Problem(414, "URI too long", f"a query string has at most {MAX_QUERY} bytes")


def values(query: bytes, *known: str) -> dict[str, str]:
    """What a query string says. Raises Problem as check_query does, and 422 for a name that isn't known or comes twice.

    A misspelt name must not be taken for none: a claim of `?N=2` would be one of 1.
    """
    check_query(query)
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            raise unprocessable(f"a query string has no {name!r} here, only {_listed(known)}")
        if name in found:
            raise unprocessable(f"{name} must be given once")
        found[name] = value
    return found


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def size(n: str) -> int:
    """The `n` of a query string. Raises Problem 422."""
    if not SIZE.fullmatch(n) or not 1 <= int(n) <= MAX_COUNT:
        raise unprocessable(f"n must be one whole number from 1 to {MAX_COUNT}")
    return int(n)


async def check_bare(request: Request, bodies: Bodies, why: str, *, query: bool = False) -> None:
    """Raises Problem 422, which begins with `why`, for a body, and unless there may be one, for a query string.

    What they said would be ignored.
    """
    if request.scope["query_string"] and not query:
        raise unprocessable(f"{why}: there is no query string here")
    if await bodies.read(request.scope, request.receive):
        raise unprocessable(f"{why}: there is no body here")


def check_origin(scope: Scope, allowed_origins: Collection[str], said: str) -> None:
    """Raises Problem unless the page of another site that a browser asks for is of an allowed origin.

    `said`: what it may not do otherwise, and that it did nothing.
    """
    origins = [value.decode("latin-1") for header, value in scope["headers"] if header == b"origin"]
    if len(origins) != 1 or origins[0] not in allowed_origins:
        raise Problem(403, "Forbidden", f"a page of another site may not {said}")


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
