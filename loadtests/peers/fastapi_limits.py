"""FastAPI with the library `limits`: its fixed window in Redis, the usual way to a rate limit.

It says yes or no and gives no numbers; what is told as `request_count` is what is taken when the answer is made, so
that several claims can be told the same.
"""

import os
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from limits import RateLimitItemPerYear
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

LIMIT = int(os.environ["PEER_LIMIT"])

app = FastAPI()
item = RateLimitItemPerYear(LIMIT, 100)
# Connections: 100 by default, and a 500 beyond.
storage = RedisStorage("async+" + os.environ["PEER_STORE"], implementation="redispy", max_connections=1024)
limiter = FixedWindowRateLimiter(storage)


async def _count() -> int:
    return LIMIT - int((await limiter.get_window_stats(item, "default")).remaining)


@app.get("/")
async def claim() -> Any:
    admitted = await limiter.hit(item, "default")
    body = {"request_count": await _count() if admitted else LIMIT, "limit": LIMIT}
    return body if admitted else JSONResponse(body, status_code=429)


@app.get("/counters/default")
async def read() -> Any:
    return {"count": await _count(), "limit": LIMIT}
