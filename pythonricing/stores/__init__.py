"""The stores, opened by the scheme of their URL. A driver is imported only when its scheme is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythonricing.stores.base import StoreURLError

if TYPE_CHECKING:
    from pythonricing.stores.base import Store


def create_store(url: str, timeout: float) -> Store:
    """The store behind `url`; `timeout` is the seconds after which a silent connection is given up.

    Raises StoreURLError for a URL that can't be used and for a driver that isn't installed.
    """
    match url.partition("://")[0]:
        case "memory":
            from pythonricing.stores.memory import MemoryStore

            return MemoryStore()
        case "redis" | "rediss" | "unix":
            from pythonricing.stores.redis import RedisStore

            return RedisStore(url, timeout)
        case "postgresql":
            try:
                from pythonricing.stores.postgres import PostgresStore
            except ImportError:
                raise StoreURLError("PostgreSQL needs its driver: pip install 'pythonricing[postgres]'") from None

            return PostgresStore(url, timeout)
        case scheme:
            raise StoreURLError(f"no store is known for {scheme}://")
