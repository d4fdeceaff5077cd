"""What the plain ASGI peers share: `GET /` claims, everything else reads."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import redis.asyncio as redis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIMIT = int(os.environ["PEER_LIMIT"])
store = redis.from_url(os.environ["PEER_STORE"], max_connections=1024)  # 100 by default, and a 500 beyond


def application(claim: Callable[[], Awaitable[int]]) -> Callable[[dict[str, Any], Any, Any], Awaitable[None]]:
    """An ASGI application around a function that counts: its answer is over the limit where the claim is refused."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        status, answer = 200, {"limit": LIMIT}
        if scope["path"] == "/":
            count = await claim()
            status = 200 if count <= LIMIT else 429
            answer["request_count"] = min(count, LIMIT)
        else:
            answer["count"] = min(int(await store.get("count") or 0), LIMIT)
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
