"""The design of the first PythonRicing: read the counter, compare it with the limit, write it back.

Between the read and the write of one request others read the same number, in this worker and in all others: the same
number is given to many, and more than `limit` requests are admitted. It is here to show by how much.
"""

import os

import redis.asyncio as redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

LIMIT = int(os.environ["PEER_LIMIT"])

store = redis.from_url(os.environ["PEER_STORE"])


async def claim(request: Request) -> JSONResponse:
    count = int(await store.get("count") or 0)
    if count >= LIMIT:
        return JSONResponse({"request_count": count, "limit": LIMIT}, status_code=429)
    await store.set("count", count + 1)
    return JSONResponse({"request_count": count + 1, "limit": LIMIT})


async def read(request: Request) -> JSONResponse:
    return JSONResponse({"count": int(await store.get("count") or 0), "limit": LIMIT})


app = Starlette(routes=[Route("/", claim), Route("/counters/default", read)])
