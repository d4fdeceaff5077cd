"""Routes: which pipeline leads to the server of a counter, on a single server, behind Sentinels, in a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pythonricing.settings import without_password
from pythonricing.stores.redis.connector import Connector
from pythonricing.stores.redis.url import read, read_cluster, read_sentinel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.model import Server
    from pythonricing.stores.redis.connector import Dial
    from pythonricing.stores.redis.pipeline import Pipeline


class Route(Protocol):
    """The way to the servers of a store. For the methods that a Store has too, see there."""

    #: Called after each connection.
    on_connect: Callable[[], None]
    #: Called when a connection is gone.
    on_disconnect: Callable[[], None]
    #: Whether counters are spread over servers that may be away one by one.
    spread: bool

    def servers(self) -> Sequence[Server]: ...

    def server_of(self, name: str) -> str: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ready(self, name: str | None = None) -> None: ...

    async def probe(self) -> list[str] | None: ...

    def pipeline(self, name: str) -> Pipeline:
        """The connection to the server of a counter, or of the index. Raises StoreUnavailable if there is none."""

    async def redirect(self, name: str, error: str, pipeline: Pipeline) -> tuple[Pipeline, bool]:
        """The connection to the server that an error reply names, and whether to send ASKING first.

        Raises StoreUnavailable or StoreRejected if it names none.
        """


def route_to(url: str, timeout: float, replicas: int = 0, dial: Dial | None = None) -> Route:
    """The route that a URL describes (see Connector for the rest). Raises StoreURLError."""
    where = without_password(url)
    scheme, _, kind = url.partition("://")[0].partition("+")
    match kind:
        case "sentinel":
            from pythonricing.stores.redis.routes.sentinel import Elected

            asked = read_sentinel(url)
            return Elected(where, Connector(asked.data, timeout, replicas, dial), asked)
        case "cluster":
            from pythonricing.stores.redis.routes.cluster import Cluster

            spread = read_cluster(url)
            return Cluster(where, scheme, Connector(spread.data, timeout, replicas, dial), spread)
        case _:
            from pythonricing.stores.redis.routes.single import Single

            options = read(url)
            return Single(where, Connector(options, timeout, replicas, dial), options.address)
