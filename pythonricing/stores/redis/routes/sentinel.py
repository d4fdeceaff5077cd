"""The way to the server that Sentinels call the master, followed when they name another."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hiredis
import msgspec
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.utils import str_if_bytes

from pythonricing.counting.model import StoreUnavailable
from pythonricing.stores.link import stop
from pythonricing.stores.redis.routes.single import Single
from pythonricing.stores.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Server
    from pythonricing.stores.redis.connector import Connector
    from pythonricing.stores.redis.pipeline import Pipeline
    from pythonricing.stores.redis.url import SentinelOptions

#: Seconds after which the Sentinels are asked whether the master is still the one.
POLL_SECONDS = 1.0
#: Seconds that an attempt to connect takes at most: longer, and it might miss that there is another master by now.
CONNECT_SECONDS = 2.0


class Sentinels(Sentinel):
    """redis-py's Sentinel, which believes whoever answers first; here the newest word counts.

    A Sentinel that was cut off together with the old master goes on naming it, but its configuration epoch is older
    than that of the failover ("Redis Sentinel, high availability", configuration epochs).
    """

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Address of the master. Raises MasterNotFoundError."""
        answers = await asyncio.gather(
            *(self._ask(sentinel, service_name) for sentinel in self.sentinels), return_exceptions=True
        )
        named = [answer for answer in answers if isinstance(answer, tuple)]
        if not named:
            reasons = "; ".join(sorted({str(answer) for answer in answers}))
            raise MasterNotFoundError(f"no Sentinel names a master for {service_name}: {reasons}")
        return max(named, key=lambda answer: answer[0])[1]

    async def _ask(self, sentinel: Any, service_name: str) -> tuple[int, tuple[str, int]]:
        """The configuration epoch that a Sentinel knows and its master. Raises RedisError, also if that is down."""
        state = await sentinel.sentinel_master(service_name)
        host, port = await sentinel.sentinel_get_master_addr_by_name(service_name)
        address = str_if_bytes(host), port
        # A new master is named as soon as it is one; the state is that of the old one until all replicas follow.
        promoted = address != (state["ip"], state["port"])
        if not (promoted or self.check_master_state(state, service_name)):
            raise MasterNotFoundError(f"{state['ip']}:{state['port']} is down")
        return int(state["config-epoch"]), address


class Elected(Single):
    """A single server whose address the Sentinels tell."""

    def __init__(self, where: str, connector: Connector, options: SentinelOptions) -> None:
        super().__init__(where, connector, None)
        self._options = options
        self._patience = min(connector.timeout, CONNECT_SECONDS)
        self._follower: asyncio.Task[None] | None = None

    def servers(self) -> Sequence[Server]:
        return [msgspec.structs.replace(server, elected=bool(server.name)) for server in super().servers()]

    async def open(self) -> None:
        if self._follower is not None:
            return
        # Here and not when it is made: a server may fork its workers later.
        self._sentinels = Sentinels(  # type: ignore[no-untyped-call]
            self._options.sentinels,
            sentinel_kwargs={
                "socket_timeout": self._patience / 2,
                "socket_connect_timeout": self._patience / 2,
                "retry": Retry(NoBackoff(), 0),
                "username": self._options.username,
                "password": self._options.password,
                "protocol": 2,
                "client_name": self._options.data.client_name,
                **self._options.data.tls_words,
            },
        )
        await super().open()
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._follower is not None:
            await stop(self._follower)
            await self._sentinels.aclose()
        await super().close()

    async def _follow(self) -> None:
        """Leave the master for which there is a new one, although it may still answer: it is cut off, not dead."""
        while True:
            await asyncio.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))
            if not self._link.connected:
                continue  # the link asks
            with suppress(RedisError, OSError):
                pipeline = self._link.connection
                if await self._named() != self._address:
                    pipeline.close()

    async def _named(self) -> Address:
        """The master, as the Sentinels name it. Raises RedisError and OSError."""
        return Address(*await self._sentinels.discover_master(self._options.service))

    async def _connect(self) -> Pipeline:
        self._address = await self._named()
        return await self._connector.open(self._address, self._patience, self._link.lost, self._verify)

    async def _verify(self, pipeline: Pipeline) -> None:
        # A Sentinel may not know yet that this one was demoted ("Guidelines for Redis clients with support for
        # Redis Sentinel").
        reply = await pipeline.call("ROLE")
        if isinstance(reply, hiredis.ReplyError):
            raise StoreUnavailable(str(reply))
        if reply[0] != b"master":
            raise StoreUnavailable(f"{self._address} is no master but a {reply[0].decode()}")
        # Nor may this one: it may have been silent for as long as the failover took.
        if await self._named() != self._address:
            raise StoreUnavailable(f"{self._address} was replaced meanwhile")
