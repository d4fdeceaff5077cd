"""The ASGI application: `create_app(settings)` for tests and `app` for the servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journals
from pythonricing.counting.model import StoreURLError
from pythonricing.settings import Settings, SettingsError
from pythonricing.stores import create_store
from pythonricing.telemetry import logs
from pythonricing.telemetry.metrics import Metrics, Scrape, Snapshot
from pythonricing.web.api import Claim, Live, Manage, Ready, http_error
from pythonricing.web.openapi import Document
from pythonricing.web.watch import Events, Feed, Page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send


class App(Starlette):
    """Starlette with a short cut: claims skip its middleware and router, which cost as much as the claim itself."""

    def __init__(self, claim: Claim, manage: Manage, **options: Any) -> None:
        super().__init__(**options)
        self._claim = claim
        self._manage = manage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            method, path = scope["method"], scope["path"]
            if path == "/" and method in ("GET", "POST"):
                await self._claim(scope, receive, send)
                return
            if method == "POST" and path.startswith("/counters/"):
                scope["path_params"] = {"name": path[10:]}
                await self._manage(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> Starlette:
    """The service on the store that the settings name. Raises StoreURLError."""
    writer = logs.configure(settings.log_level)
    claim_log = logs.ClaimLog(writer, requests=settings.request_log == "on" and logs.shows_info(settings.log_level))
    store = create_store(settings.store, settings.store_timeout, settings.store_replicas, settings.on_loss)
    metrics = Metrics(
        lambda: sum(server.reconnects for server in store.servers()),
        lambda: writer.dropped,
        lambda: {server.name: server.connected for server in store.servers() if server.name},
    )
    counters = Counters(
        store,
        Journals(claim_log, metrics),
        limit=settings.limit,
        timeout=settings.store_timeout,
        halt_cache=settings.halt_cache,
    )
    snapshot = Snapshot(counters)
    feed = Feed(snapshot, metrics)
    ready = Ready(counters, lambda: next((server.name for server in store.servers() if server.elected), None))

    def stop() -> None:
        ready.stopping = True
        feed.close()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        on_terminate(stop)
        await counters.open()
        metrics.open()
        yield
        stop()
        await counters.close()
        metrics.close()
        claim_log.close()
        logs.close()

    claim, manage = Claim(counters), Manage(counters, settings.admin_token)
    watch = [
        Route("/watch", Page(counters), methods=["GET"]),
        Route("/watch/events", Events(counters, feed), methods=["GET"]),
    ]
    app = App(
        claim,
        manage,
        routes=[
            Route("/", claim, methods=["GET", "POST"]),
            Route("/counters/{name}", manage, methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/livez", Live(counters), methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
            Route("/openapi.json", Document(counters), methods=["GET"]),
            Route("/metrics", Scrape(counters, metrics, snapshot), methods=["GET"]),
            *(watch if settings.watch == "on" else []),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: http_error, Exception: http_error},
    )
    app.router.redirect_slashes = False
    return app


def on_terminate(act: Any) -> None:
    """Call `act` as soon as SIGTERM or SIGINT arrives, and leave the rest to the server's own handler.

    An event loop's handler is woken through a file descriptor that the interpreter writes to for any handler, so it
    runs as well as the one set here. But uvloop listens there only while it runs: a signal that comes while the server
    gets ready between two runs is raised again in the next one.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(received: int, frame: Any, before: Any = before) -> None:
            act()
            if not loop.is_running() and not loop.is_closed():
                loop.call_soon(signal.raise_signal, received)
            if callable(before):
                before(received, frame)

        signal.signal(number, handle)


def _app() -> Starlette:
    try:
        return create_app(Settings.from_environ(os.environ))
    except (SettingsError, StoreURLError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def __getattr__(name: str) -> Starlette:
    """`app` is made when a server asks for it, so that importing this module has no effects."""
    if name == "app":
        application = globals()["app"] = _app()
        return application
    raise AttributeError(name)
