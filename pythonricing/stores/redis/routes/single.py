"""The way to a single server, which has all counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythonricing.counting.model import Server
from pythonricing.stores.link import Link
from pythonricing.stores.redis.pipeline import refused, try_write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.stores.redis.connector import Connector
    from pythonricing.stores.redis.pipeline import Pipeline
    from pythonricing.stores.redis.url import Address


class Single:
    """A Route of one link; every counter is behind it."""

    spread = False

    def __init__(self, where: str, connector: Connector, address: Address | None) -> None:
        self.on_connect: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        self._connector = connector
        #: None while it isn't known which server it is.
        self._address = address
        self._link: Link[Pipeline] = Link(where, self._connect, lambda: self.on_connect(), lambda: self.on_disconnect())

    def servers(self) -> Sequence[Server]:
        link = self._link
        return [Server(self.server_of(""), link.connected, max(0, link.reconnects), link.trouble)]

    def server_of(self, name: str) -> str:
        return str(self._address or "")

    async def open(self) -> None:
        self._link.open()

    async def close(self) -> None:
        await self._link.close()

    async def ready(self, name: str | None = None) -> None:
        await self._link.ready()

    async def probe(self) -> list[str] | None:
        await self._link.ready()
        await try_write(self._link.connection, "pythonricing:probe")
        return None

    def pipeline(self, name: str) -> Pipeline:
        return self._link.connection

    async def redirect(self, name: str, error: str, pipeline: Pipeline) -> tuple[Pipeline, bool]:
        raise refused(error, pipeline)

    async def _connect(self) -> Pipeline:
        assert self._address is not None
        return await self._connector.open(self._address, self._connector.timeout * 2, self._link.lost)
