"""The ceiling: the same answer to every request, with nothing behind it, as a plain ASGI callable."""

from __future__ import annotations

import asyncio
from typing import Any

BODY = b'{"request_count":1,"limit":1}'


def answering(body: bytes, after: float = 0.0) -> Any:
    """An application that gives this answer, so many seconds after it was asked."""
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", b"%d" % len(body)),
    ]

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if after:
            await asyncio.sleep(after)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def _lifespan(receive: Any, send: Any) -> None:
    message = {"type": ""}
    while message["type"] != "lifespan.shutdown":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


app = answering(BODY)
#: 16 KiB of JSON.
large = answering(b'{"padding":"' + b"x" * (16 * 1024 - 14) + b'"}')
waits = answering(BODY, after=0.010)
