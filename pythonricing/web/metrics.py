"""`/metrics`: what this server has counted and what the store says, for Prometheus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from pythonricing.web.parts import Parts
from pythonricing.web.responses import NO_STORE

if TYPE_CHECKING:
    from starlette.requests import Request


async def scrape(request: Request) -> Response:
    parts = Parts.of(request)
    state = await parts.snapshot.take()
    async with parts.scraping:
        parts.metrics.flush()
        body = await asyncio.to_thread(parts.metrics.render, state)
    return Response(body, headers={**NO_STORE, "content-type": CONTENT_TYPE_PLAIN_0_0_4})
