"""Counters in the Redis or Valkey that its Sentinels call the master, followed when they name another."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.utils import str_if_bytes

from pythonricing.counting.model import StoreURLError
from pythonricing.stores.link import stop
from pythonricing.stores.redis.store import Pipeline, RedisStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Server
    from pythonricing.settings import OnLoss

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


class SentinelStore(RedisStore):
    """A Store on `redis+sentinel://[user:password@]host:port,host:port/service[/db][?options]`.

    User and password are the data servers'; the Sentinels' own are the options `sentinel_username` and
    `sentinel_password`. The other options are those of redis-py's URLs. `rediss+sentinel://` is TLS to both.
    """

    def __init__(self, url: str, timeout: float, replicas: int = 0, on_loss: OnLoss = "halt") -> None:
        super().__init__(url, timeout, replicas, on_loss)
        self._follower: asyncio.Task[None] | None = None
        self._address: tuple[str, int] | None = None
        self._node = ""

    def _read_url(self, url: str) -> tuple[Any, dict[str, Any]]:
        parts = urlsplit(url)
        service, _, db = parts.path.removeprefix("/").partition("/")
        if not service:
            raise StoreURLError(f"{self._where}: the path must name the service, as in /mymaster")
        if db and not db.isdecimal():
            raise StoreURLError(f"{self._where}: after the service only the number of a database may follow")
        self._service = service
        self._addresses = addresses(parts.netloc, 26379, self._where)
        query = parse_qsl(parts.query, keep_blank_values=True)
        own = {name: value for name, value in query if name.startswith("sentinel_")}
        if unknown := own.keys() - {"sentinel_username", "sentinel_password"}:
            raise StoreURLError(f"{self._where}: there is no option {min(unknown)}")
        user, at, _ = parts.netloc.rpartition("@")
        scheme = parts.scheme.partition("+")[0]
        rest = urlencode([(name, value) for name, value in query if name not in own])
        kind, options = super()._read_url(f"{scheme}://{user}{at}sentinel/{db}?{rest}")
        self._patience = min(self._timeout, CONNECT_SECONDS)
        self._sentinel_options = {
            "socket_timeout": self._patience / 2,
            "socket_connect_timeout": self._patience / 2,
            "retry": Retry(NoBackoff(), 0),
            "username": own.get("sentinel_username"),
            "password": own.get("sentinel_password"),
            "protocol": 2,
            "client_name": options["client_name"],
            **({"ssl": True} if scheme == "rediss" else {}),
            **{name: value for name, value in options.items() if name.startswith("ssl_")},
        }
        return kind, options

    def servers(self) -> Sequence[Server]:
        return [msgspec.structs.replace(server, elected=bool(server.name)) for server in super().servers()]

    async def open(self) -> None:
        if self._follower is not None:
            return
        # Here and not when it is made: a server may fork its workers later.
        self._sentinels = Sentinels(self._addresses, sentinel_kwargs=self._sentinel_options)  # type: ignore[no-untyped-call]
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
                if await self._sentinels.discover_master(self._service) != self._address:
                    pipeline.close()

    async def _connect(self) -> Pipeline:
        self._address = await self._sentinels.discover_master(self._service)
        host, port = self._address
        self._node = f"{host}:{port}"
        options = {**self._connection_options, "host": host, "port": port}
        return await self._dial(self._link, self._node, options, self._patience)

    async def _verify(self, connection: Any) -> None:
        # A Sentinel may not know yet that this one was demoted ("Guidelines for Redis clients with support for
        # Redis Sentinel").
        await connection.send_command("ROLE")
        role = (await connection.read_response())[0]
        if role != b"master":
            raise RedisError(f"{self._node} is no master but a {role.decode()}")
        # Nor may this one: it may have been silent for as long as the failover took.
        if await self._sentinels.discover_master(self._service) != self._address:
            raise RedisError(f"{self._node} was replaced meanwhile")


def addresses(netloc: str, port: int, where: str) -> list[tuple[str, int]]:
    """The servers that a URL names, with a port for those that have none. Raises StoreURLError."""
    found = []
    for address in netloc.rpartition("@")[2].split(","):
        try:
            parts = urlsplit(f"//{address}")
            host, given = parts.hostname, parts.port
        except ValueError as error:
            raise StoreURLError(f"{where}: {error}") from None
        if not host or parts.path:
            raise StoreURLError(f"{where}: servers are named like host:port,host:port")
        found.append((host, port if given is None else given))
    return found
