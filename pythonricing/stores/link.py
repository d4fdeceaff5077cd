"""A connection that is kept open."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from loguru import logger

from pythonricing.counting.model import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended.

    Once may not be enough: `asyncio.wait_for`, which redis-py uses, swallows a cancellation that comes together with
    what it waits for (https://github.com/python/cpython/issues/86296, fixed in Python 3.12).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


class Connection(Protocol):
    """What a Link keeps: something that can be closed and says when it was lost."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Connection)


class Link(Generic[C]):
    """Keeps one connection open: reconnects at once after a loss, then backs off, one attempt at a time.

    The delay before the k-th further attempt is uniform between half and all of min(20 ms * 2^k, 1 s): exponential
    backoff with equal jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    def __init__(
        self,
        where: str,
        connect: Callable[[], Awaitable[C]],
        on_connect: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._where = where
        self._connect = connect
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._made = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: C | None = None
        #: Connections made after the first one.
        self.reconnects = -1
        #: Why the last attempt failed.
        self.trouble = ""

    def open(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await stop(task)
        if self._connection is not None:
            self._connection.close()

    async def ready(self) -> None:
        if self._connection is None or self._connection.closed:
            await self._made.wait()

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    @property
    def connection(self) -> C:
        """The open connection. Raises StoreUnavailable if there is none at the moment."""
        if self._connection is None or self._connection.closed:
            raise StoreUnavailable(f"not connected to {self._where}")
        return self._connection

    def lost(self) -> None:
        """The connection is gone: make a new one, starting now. Called by the connection itself."""
        self._made.clear()
        self._on_lost()
        if self._task is not None and self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                self._connection = await self._connect()
                if self._connection.closed:
                    raise StoreUnavailable("the connection was closed at once")
            except Exception as error:
                self.trouble = str(error)
                if attempt == 0:
                    logger.warning("store {} can't be reached, trying again: {}", self._where, error)
                ceiling = min(0.02 * 2 ** min(attempt, 6), 1.0)  # 2**1024 is no float
                attempt += 1
                await asyncio.sleep(random.uniform(ceiling / 2, ceiling))
            else:
                self.reconnects += 1
                logger.info("store {} connected", self._where)
                self._made.set()
                self._on_connect()
                return
