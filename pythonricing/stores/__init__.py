"""The stores, opened by the scheme of their URL. A driver is imported only when its scheme is used."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pythonricing.counting.model import StoreURLError
from pythonricing.settings import without_password

if TYPE_CHECKING:
    from pythonricing.counting.store import Store
    from pythonricing.settings import OnLoss


def create_store(url: str, timeout: float, replicas: int = 0, on_loss: OnLoss = "halt") -> Store:
    """The store behind `url`; `timeout` is the seconds for which a claim waits for it.

    `replicas` is how many of a Redis or Valkey must confirm a change, 0 for other stores; `on_loss` is that setting.
    Raises StoreURLError for a URL that can't be used and for a driver that isn't installed.
    """
    match url.partition("://")[0]:
        case "memory":
            from pythonricing.stores.memory import MemoryStore

            return MemoryStore(on_loss)
        case "redis" | "rediss" | "unix" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster" | "rediss+cluster":
            from pythonricing.stores.redis.store import RedisStore

            return RedisStore(url, timeout, replicas, on_loss)
        case "postgresql":
            try:
                from pythonricing.stores.postgres.store import PostgresStore
            except ImportError:
                raise StoreURLError("PostgreSQL needs its driver: pip install 'pythonricing[postgres]'") from None

            try:
                urlsplit(url)
            except ValueError as error:  # half an IPv6 address
                raise StoreURLError(f"{without_password(url)}: {error}") from None
            return PostgresStore(url, timeout, on_loss)
        case scheme:
            raise StoreURLError(f"no store is known for {scheme}://")
