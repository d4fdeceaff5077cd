"""What the endpoints of one application work on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

    from pythonricing.counting.counters import Counters
    from pythonricing.counting.store import Store
    from pythonricing.telemetry.events import Feed, Snapshot
    from pythonricing.telemetry.metrics import Metrics


@dataclass
class Parts:
    """The application's parts, and whether it is stopping."""

    counters: Counters
    store: Store
    metrics: Metrics
    snapshot: Snapshot
    feed: Feed
    admin_token: str | None
    #: Whose pages may ask.
    allowed_origins: tuple[str, ...] = ()
    stopping: bool = False
    #: Scrapes read all workers' files: one at a time.
    scraping: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, request: Request) -> Parts:
        """Those of the application that the request came to."""
        parts: Parts = request.app.parts
        return parts

    def stop(self) -> None:
        """Be ready for no more claims and end every stream; a signal's handler may call it."""
        self.stopping = True
        self.feed.close()
