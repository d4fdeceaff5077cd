"""What is received of a request: the name of a counter, a body, and that the client is gone."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from pythonricing.web.problems import Problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

#: Bytes of a request's body, at most.
MAX_BODY = 4096
#: Bytes of a query string, at most: parsing one of 60 KiB takes 43 ms, in which nobody else is answered.
MAX_QUERY = 1024
#: Seconds for the whole body of a request.
BODY_SECONDS = 10
#: What a counter may be called: not `.` or `..`, because clients make `/counters/..` into `/`, which claims.
NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The request's body. Raises Problem: 413 for more than MAX_BODY bytes, without reading on; 400 for half; 408."""
    too_large = Problem(413, "Content too large", f"a body has at most {MAX_BODY} bytes")
    for header, value in scope["headers"]:
        if header == b"content-length" and (not value.isdigit() or int(value) > MAX_BODY):
            raise too_large
    received = b""
    more = True
    try:
        # A body that never comes must not hold its place, nor keep the worker from stopping.
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "Bad request", "the connection was closed before the body was complete")
                received += message.get("body", b"")
                if len(received) > MAX_BODY:
                    raise too_large
                more = message.get("more_body", False)
    except TimeoutError:
        detail = f"the body was not complete within {BODY_SECONDS} seconds"
        raise Problem(408, "Request timeout", detail, headers={"connection": "close"}) from None
    return received


def check_query(query: bytes) -> None:
    """Raises Problem 414 for a query string over MAX_QUERY bytes."""
    if len(query) > MAX_QUERY:
        raise Problem(414, "URI too long", f"a query string has at most {MAX_QUERY} bytes")


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
