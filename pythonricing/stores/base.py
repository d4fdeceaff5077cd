"""What a store is: the one protocol that the memory, Redis and PostgreSQL stores keep."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec
from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

#: Seconds for which a store remembers a worker's last batch. Workers stop sending a batch again long before.
RECEIPT_SECONDS = 3600
#: Seconds for which a store remembers the first answer to an idempotency key.
KEY_SECONDS = 86_400
#: Seconds for which a store remembers that a counter was deleted, so that its absence is no loss of data.
TOMBSTONE_SECONDS = 7 * 86_400


class StoreError(Exception):
    """Something kept a store from doing its work."""


class StoreURLError(StoreError):
    """The store's URL can't be used. Its text is one line for the operator."""


class StoreUnavailable(StoreError):
    """No answer came. A batch may have been executed or not: sending the same batch again settles it."""


class StoreRejected(StoreError):
    """The store answered with an error and executed nothing."""


class NoSuchCounter(StoreError):
    """There is no counter of this name, and none was lost."""


class StateLost(StoreError):
    """The store's data is gone or older than what a worker has seen; counting on would oversell."""


class Seen(msgspec.Struct, frozen=True):
    """The newest state of a counter that a worker knows of."""

    epoch: int
    count: int
    limit: int


class Counter(msgspec.Struct, frozen=True):
    """A counter as the store has it. `epoch` is new whenever counting starts over: later epochs are greater.

    `lost` is told by `browse` only: the store is known to have lost what the counter had counted.
    """

    name: str
    count: int
    limit: int
    epoch: int
    lost: bool = False
    #: The count before this reading raised it to the highest that the worker had seen; None: it didn't.
    raised: int | None = None


class Batch(msgspec.Struct):
    """The claims of one worker on one counter that travel together, in arrival order.

    Sending a batch with the same `sequence` again never counts twice: the store keeps the reply to each worker's last
    batch (its receipt) and repeats it. What is sent again may leave out claims that nobody waits for any more; the
    `attempt` in the reply tells which of the compositions was executed.
    """

    name: str
    worker: str
    sequence: int
    attempt: int
    #: The size of each claim; at least 1.
    sizes: list[int]
    #: The idempotency key of each claim, or None if no claim has one.
    keys: list[str | None] | None
    seen: Seen | None
    #: The limit with which a counter that isn't there is created; None: it isn't.
    create: int | None


class Replay(msgspec.Struct, frozen=True):
    """The first answer to an idempotency key, found again."""

    size: int
    count: int
    limit: int
    admitted: bool


class Verdict(msgspec.Struct, frozen=True):
    """The store's reply to a batch.

    Claims are granted greedily in arrival order, each whole or not at all, so that `before`, `limit` and the sizes
    say what each claim got; a claim with a replay takes no part in that.
    """

    attempt: int
    epoch: int
    limit: int
    #: The count before the batch.
    before: int
    #: One entry for each claim with an idempotency key, in order; None where the key was new.
    replays: list[Replay | None]
    #: The count before it was raised to `before`, the highest that the worker had seen; None: it wasn't.
    raised: int | None = None


class Store(Protocol):
    """Where counters live. Every method but `open` and `close` raises StoreUnavailable, StoreRejected or StateLost."""

    #: Called after each connection, the first one too: what it leads to may know less than the one before.
    connected: Callable[[], None]

    @property
    def trouble(self) -> str:
        """Why the store can't be reached, and which server of it, as far as is known."""

    @property
    def reconnects(self) -> int:
        """Connections made after the first one."""

    @property
    def nodes(self) -> Mapping[str, bool]:
        """The servers that hold counters, and whether this worker is connected to each; empty if they aren't told."""

    @property
    def master(self) -> str | None:
        """The server that others say is the one in charge; None if nobody has to be asked."""

    def node(self, name: str) -> str:
        """The server that holds a counter, as far as is known."""

    async def open(self) -> None:
        """Start connecting. Doesn't wait for it and doesn't fail while the store is away."""

    async def close(self) -> None:
        """Let go of every connection."""

    async def ready(self, name: str | None = None) -> None:
        """Wait until the server of a counter is connected; without a name, any server."""

    async def probe(self) -> list[str] | None:
        """The servers that don't answer while others do; None where there is only one, which is for `read` to ask.

        Raises StoreUnavailable if none answers, or if it is known that too few replicas would confirm a claim.
        """

    async def claim(self, batch: Batch) -> Verdict:
        """Execute `batch` atomically, or repeat its receipt. Raises NoSuchCounter too."""

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        """Read a counter and check it against `seen`. Raises NoSuchCounter too."""

    async def put(self, name: str, limit: int | None, *, restart: bool = False) -> tuple[Counter, bool]:
        """Create a counter, change its limit (None keeps it) or, with `restart`, count from 0 in a new epoch.

        It is an operator's word: it ends the state of a lost counter. Returns the counter and whether it was created.
        Raises NoSuchCounter if there is none and no limit to create it with.
        """

    async def configure(self, name: str, limit: int) -> None:
        """Give a counter the limit of the settings, creating it if need be. No operator's word: a loss stays one."""

    async def delete(self, name: str) -> None:
        """Forget a counter and remember that it was deleted. Raises NoSuchCounter too."""

    async def browse(self, limit: int) -> list[Counter]:
        """The first `limit` counters by name, lost ones too; doesn't create any."""


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
        self, where: str, connect: Callable[[], Awaitable[C]], connected: Callable[[], None] = lambda: None
    ) -> None:
        self._where = where
        self._connect = connect
        self._tell_connected = connected
        self._connected = asyncio.Event()
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
            await self._connected.wait()

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
        self._connected.clear()
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
                ceiling = min(0.02 * 2**attempt, 1.0)
                attempt += 1
                await asyncio.sleep(random.uniform(ceiling / 2, ceiling))
            else:
                self.reconnects += 1
                logger.info("store {} connected", self._where)
                self._connected.set()
                self._tell_connected()
                return
