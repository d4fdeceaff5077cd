"""How a pipeline is opened: somebody dials, then the server is greeted."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import hiredis
from redis.exceptions import RedisError

from pythonricing.counting.model import StoreError, StoreUnavailable
from pythonricing.stores.redis.pipeline import ConfirmingPipeline, Pipeline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pythonricing.stores.redis.url import Address, Options

#: Seconds of silence after which the kernel asks whether the other side is still there, and between its questions; how
#: many of them it asks. Only where the platform has them.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Dial(Protocol):
    """Connects a new pipeline to an address, as `loop.create_connection` does. Raises OSError."""

    async def __call__(
        self, protocol_factory: Callable[[], Pipeline], address: Address, /
    ) -> tuple[asyncio.BaseTransport, Pipeline]: ...


class Connector:
    """Opens pipelines to the servers of one store.

    `timeout` is the seconds after which a silent connection is given up, `replicas` how many of a server must confirm
    what is written. `dial` connects; without one, the running loop does as the options say.
    """

    def __init__(self, options: Options, timeout: float, replicas: int = 0, dial: Dial | None = None) -> None:
        self.timeout = timeout
        self.replicas = replicas
        self._options = options
        self._dial = dial or partial(connect, options)

    async def open(
        self,
        address: Address,
        patience: float,
        lost: Callable[[], None],
        verify: Callable[[Pipeline], Awaitable[None]] | None = None,
    ) -> Pipeline:
        """A pipeline to a server, within `patience` seconds. Raises StoreUnavailable.

        `verify` raises a StoreError or RedisError if this server is not one to send claims to.
        """
        try:
            async with asyncio.timeout(patience):
                async with asyncio.timeout(self._options.connect_timeout):
                    _, pipeline = await self._dial(partial(self._pipeline, lost), address)
                try:
                    async with asyncio.timeout(self._options.reply_timeout):
                        await self._greet(pipeline)
                        if verify is not None:
                            await verify(pipeline)
                        if isinstance(pipeline, ConfirmingPipeline):
                            pipeline.waits = await self._waits(pipeline)
                except BaseException:
                    pipeline.close()
                    raise
        except (StoreError, RedisError, TimeoutError, OSError) as error:
            text, node = str(error) or "no answer in time", str(address)
            raise StoreUnavailable(text if node in text else f"{node}: {text}") from None
        return pipeline

    def _pipeline(self, lost: Callable[[], None]) -> Pipeline:
        if self.replicas:
            return ConfirmingPipeline(self.timeout, lost, self.replicas)
        return Pipeline(self.timeout, lost)

    async def _greet(self, pipeline: Pipeline) -> None:
        """Say who this is and which database it wants, in one round trip."""
        options = self._options
        commands: list[tuple[str | int, ...]] = []
        if options.username:
            commands.append(("AUTH", options.username, options.password or ""))
        elif options.password:
            commands.append(("AUTH", options.password))
        commands.append(("CLIENT", "SETNAME", options.client_name))
        if options.db:
            commands.append(("SELECT", options.db))
        for reply in await asyncio.gather(*(pipeline.call(*command) for command in commands)):
            if isinstance(reply, hiredis.ReplyError):
                raise StoreUnavailable(str(reply))

    async def _waits(self, pipeline: Pipeline) -> list[tuple[str | int, ...]]:
        """How to wait for the replicas: for half of the time after which a silent connection is given up."""
        milliseconds = max(2, int(self.timeout * 500))
        settings = []
        for setting in ("appendonly", "appendfsync"):
            reply = await pipeline.call("CONFIG", "GET", setting)
            settings.append(None if isinstance(reply, hiredis.ReplyError) else reply[-1:])  # it may not tell
        if settings == [[b"yes"], [b"always"]]:
            known = await pipeline.call("COMMAND", "INFO", "WAITAOF")
            if isinstance(known, hiredis.ReplyError):
                raise StoreUnavailable(str(known))
            if known[0]:
                # A replica that is asked what it has answers before it syncs, and of its own accord once a second. The
                # WAIT asks first, so that the WAITAOF asks again after the sync.
                half = milliseconds // 2
                return [("WAIT", self.replicas, half), ("WAITAOF", 1, self.replicas, half)]
        return [("WAIT", self.replicas, milliseconds)]


async def connect(
    options: Options, protocol_factory: Callable[[], Pipeline], address: Address
) -> tuple[asyncio.BaseTransport, Pipeline]:
    """Connect over TCP, TLS or a socket of this machine. Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.path:
        return await loop.create_unix_connection(protocol_factory, address.path)
    transport, pipeline = await loop.create_connection(protocol_factory, address.host, address.port, ssl=options.tls)
    if options.keepalive:
        _keep_alive(transport.get_extra_info("socket"))
    return transport, pipeline


def _keep_alive(connection: Any) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        with suppress(AttributeError, OSError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
