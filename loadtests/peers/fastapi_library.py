"""FastAPI with the counters as a library where `fastapi_incr` has redis-py: the same route, batched, with receipts."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

import pythonricing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

counters: pythonricing.OpenCounters


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global counters
    async with pythonricing.open_counters(os.environ["PEER_STORE"]) as counters:
        await counters.configure("default", int(os.environ["PEER_LIMIT"]))
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def claim() -> Any:
    answer = await counters.claim("default")
    body = {"request_count": answer.request_count, "limit": answer.limit}
    return body if answer.admitted else JSONResponse(body, status_code=429)


@app.get("/counters/default")
async def read() -> Any:
    counter = await counters.read("default")
    return {"count": counter.count, "limit": counter.limit, "leased": counter.leased}


@app.delete("/counters/default")
async def reset() -> None:
    await counters.reset("default")


@app.get("/readyz")
async def ready() -> Any:
    return await read()
