"""What most people would write: FastAPI, and one `INCR` over redis-py for each request. Exact, and simple."""

import os
from typing import Any

import redis.asyncio as redis
from fastapi import FastAPI
from fastapi.responses import JSONResponse

LIMIT = int(os.environ["PEER_LIMIT"])

app = FastAPI()
store = redis.from_url(os.environ["PEER_STORE"], max_connections=1024)  # 100 by default, and a 500 beyond


@app.get("/")
async def claim() -> Any:
    count = await store.incr("count")
    if count > LIMIT:
        return JSONResponse({"request_count": LIMIT, "limit": LIMIT}, status_code=429)
    return {"request_count": count, "limit": LIMIT}


@app.get("/counters/default")
async def read() -> Any:
    return {"count": min(int(await store.get("count") or 0), LIMIT), "limit": LIMIT}
