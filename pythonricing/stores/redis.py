"""Counters in Redis or Valkey: redis-py connects, hiredis carries every command over one pipelined connection."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from pythonricing.settings import without_password
from pythonricing.stores.base import (
    KEY_SECONDS,
    RECEIPT_SECONDS,
    TOMBSTONE_SECONDS,
    Counter,
    Link,
    NoSuchCounter,
    Replay,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    StoreURLError,
    Verdict,
)

if TYPE_CHECKING:
    from pythonricing.stores.base import Batch, Seen

#: Error replies of a server that will do the work in a moment, or whose role has moved elsewhere.
PASSING_ERRORS = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS", "READONLY", "MASTERDOWN")
#: Those of them after which another connection may find a better server.
LEAVING_ERRORS = ("READONLY", "MASTERDOWN")


class Script:
    """A Lua script, called by its SHA-1 digest."""

    def __init__(self, name: str) -> None:
        self.source = resources.files(__package__).joinpath(name).read_bytes()
        self.digest = hashlib.sha1(self.source).hexdigest()


CLAIM, PUT, DELETE = Script("claim.lua"), Script("put.lua"), Script("delete.lua")


class Pipeline(asyncio.Protocol):
    """One connection shared by all callers: commands go out at once, replies come back in order.

    A command that stays unanswered for `timeout` seconds closes the connection, so that no reply can ever be taken
    for another command's.
    """

    def __init__(self, connection: Any, timeout: float, link: Link[Pipeline]) -> None:
        self._loop = asyncio.get_running_loop()
        self._redis_connection = connection  # redis-py closes the socket when this is collected
        self._transport: asyncio.Transport = connection._writer.transport
        self._reader = hiredis.Reader()
        self._timeout = timeout
        self._link = link
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self.closed = self._transport.is_closing()
        self._transport.set_protocol(self)

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply (hiredis.ReplyError for an error) or StoreUnavailable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the connection is closed"))
            return future
        self._waiting.append((future, self._loop.time()))
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._timeout, self._watch)
        return future

    def close(self) -> None:
        self.closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        lost = StoreUnavailable(f"the connection was lost: {error or 'closed by the server'}")
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(lost)
        self._waiting.clear()
        self._redis_connection._writer = self._redis_connection._reader = None
        self._link.lost()

    def _watch(self) -> None:
        """Give up the connection if its oldest command waits too long; one timer, however many commands."""
        self._watchdog = None
        if not self._waiting:
            return
        left = self._waiting[0][1] + self._timeout - self._loop.time()
        if left > 0:
            self._watchdog = self._loop.call_later(left, self._watch)
        else:
            self.close()


class RedisStore:
    """A Store on Redis 7.0 or later, or Valkey.

    A silent connection is given up after half of `timeout`, so that what was sent over it can still be sent again
    over a new one before anybody's patience ends.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            # Only used as redis-py's reader of URLs and maker of connections.
            pool = ConnectionPool.from_url(url)
        except (ValueError, TypeError) as error:
            raise StoreURLError(f"{without_password(url)}: {error}") from None
        self._timeout = timeout / 2
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **pool.connection_kwargs}
        options.setdefault("client_name", f"pythonricing-{os.getpid()}")
        options["protocol"] = 2  # RESP3 would mix pushed messages with the replies
        self._connection_class, self._connection_options = pool.connection_class, options
        self._link: Link[Pipeline] = Link(without_password(url), self._connect)

    @property
    def trouble(self) -> str:
        return self._link.trouble

    async def open(self) -> None:
        self._link.open()

    async def close(self) -> None:
        await self._link.close()

    async def ready(self) -> None:
        await self._link.ready()

    async def claim(self, batch: Batch) -> Verdict:
        keys = [f"pythonricing:{{{batch.name}}}", f"pythonricing:{{{batch.name}}}:receipt:{batch.worker}"]
        if batch.keys is None:
            claims = [number for size, run in groupby(batch.sizes) for number in (sum(1 for _ in run), size)]
        else:
            claims = []
            for size, key in zip(batch.sizes, batch.keys, strict=True):
                claims += (1, size if key is None else -size)
                if key is not None:
                    keys.append(f"pythonricing:{{{batch.name}}}:key:{key}")
        reply = await self._claim(keys, batch.sequence, batch.attempt, batch.seen, batch.create, claims)
        attempt, epoch, limit, before, *records = reply
        return Verdict(int(attempt), int(epoch), int(limit), int(before), [_replay(record) for record in records])

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        keys = [f"pythonricing:{{{name}}}", f"pythonricing:{{{name}}}:receipt:none"]
        _, epoch, limit, count = await self._claim(keys, 0, 0, seen, create, [])
        return Counter(name, int(count), int(limit), int(epoch))

    async def put(self, name: str, limit: int | None, *, restart: bool = False) -> tuple[Counter, bool]:
        return await self._put(name, limit, "restart" if restart else "change")

    async def configure(self, name: str, limit: int) -> None:
        await self._put(name, limit, "configure")

    async def delete(self, name: str) -> None:
        await self._script(DELETE, [f"pythonricing:{{{name}}}"], TOMBSTONE_SECONDS)

    async def _claim(
        self, keys: list[str], sequence: int, attempt: int, seen: Seen | None, create: int | None, claims: list[int]
    ) -> list[bytes]:
        known: tuple[int | str, ...] = ("", "", "") if seen is None else (seen.epoch, seen.count, seen.limit)
        created = "" if create is None else create
        return await self._script(
            CLAIM, keys, sequence, attempt, RECEIPT_SECONDS, KEY_SECONDS, created, *known, *claims
        )

    async def _put(self, name: str, limit: int | None, how: str) -> tuple[Counter, bool]:
        keys = [f"pythonricing:{{{name}}}"]
        created, epoch, stored, count = await self._script(PUT, keys, "" if limit is None else limit, how)
        return Counter(name, int(count), int(stored), int(epoch)), created == b"1"

    async def _script(self, script: Script, keys: list[str], *arguments: int | str) -> list[bytes]:
        """Run a script and split its reply into words."""
        pipeline = self._link.connection
        reply = await pipeline.call("EVALSHA", script.digest, len(keys), *keys, *arguments)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            # With its source and not after SCRIPT LOAD: a SCRIPT FLUSH may come between two commands.
            reply = await pipeline.call("EVAL", script.source, len(keys), *keys, *arguments)
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            if text.startswith(LEAVING_ERRORS):
                pipeline.close()
            raise (StoreUnavailable if text.startswith(PASSING_ERRORS) else StoreRejected)(text)
        match reply:
            case b"MISSING":
                raise NoSuchCounter(keys[0])
            case b"LOST":
                raise StateLost(keys[0])
            case b"STALE":
                raise StoreRejected("a later batch of this worker was executed before this one")
        words: list[bytes] = reply.split()
        return words

    async def _connect(self) -> Pipeline:
        connection = self._connection_class(**self._connection_options)
        try:
            async with asyncio.timeout(self._timeout * 2):
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, TimeoutError) as error:
            raise StoreUnavailable(str(error) or "no answer in time") from None
        return Pipeline(connection, self._timeout, self._link)


def _replay(record: bytes) -> Replay | None:
    if record == b"-":
        return None
    _, size, count, limit, admitted = map(int, record.split(b":"))
    return Replay(size, count, limit, bool(admitted))
