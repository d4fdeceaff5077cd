"""The service: its parts put together, and their life from the server's start to its end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journals
from pythonricing.settings import without_password
from pythonricing.signals import on_terminate
from pythonricing.stores import create_store
from pythonricing.telemetry import logs
from pythonricing.telemetry.claim_log import ClaimLog
from pythonricing.telemetry.events import Feed, Snapshot
from pythonricing.telemetry.metrics import Metrics
from pythonricing.telemetry.summary import Summary
from pythonricing.web.application import Application
from pythonricing.web.parts import Parts
from pythonricing.web.routes import operations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette

    from pythonricing.settings import Settings


def create_app(settings: Settings) -> Application:
    """The service on the store that the settings name. Raises StoreURLError."""
    writer = logs.configure(settings)
    claim_log = ClaimLog(
        writer,
        requests=settings.request_log == "on" and logs.shows_info(settings.log_level),
        summed=logs.is_text(settings),
    )
    store = create_store(settings.store, settings.store_timeout, settings.store_replicas, settings.on_loss)
    metrics = Metrics(store, writer)
    counters = Counters(
        store,
        Journals(claim_log, metrics),
        limit=settings.limit,
        timeout=settings.store_timeout,
        halt_cache=settings.halt_cache,
        lease=settings.lease,
    )
    summary = Summary(counters, metrics) if logs.is_text(settings) and settings.request_log == "on" else None
    snapshot = Snapshot(counters)
    feed = Feed(snapshot, metrics, without_password(settings.store))
    parts = Parts(counters, store, metrics, snapshot, feed, settings.admin_token, settings.origins)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        on_terminate(parts.stop)
        await counters.open()
        metrics.open()
        if summary is not None:
            summary.open()
        yield
        parts.stop()
        if summary is not None:
            await summary.close()
        await counters.close()
        metrics.close()
        claim_log.close()
        logs.close()

    offered = operations(watch=settings.watch == "on", get_claims=settings.get_claims == "on")
    return Application(parts, offered, lifespan)
