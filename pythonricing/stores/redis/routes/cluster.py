"""The way through a Redis or Valkey Cluster: redis-py knows the slots, a pipeline leads to each shard's master.

All keys of a counter share a hash tag, so a batch is one script on one shard, and its receipts move with its slot.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from loguru import logger
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, RedisError

from pythonricing.counting.model import Server, StoreUnavailable, StoreURLError
from pythonricing.stores.link import Link, stop
from pythonricing.stores.redis.pipeline import refused, try_write
from pythonricing.stores.redis.routes.sentinel import CONNECT_SECONDS
from pythonricing.stores.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.stores.redis.connector import Connector
    from pythonricing.stores.redis.pipeline import Pipeline
    from pythonricing.stores.redis.url import ClusterOptions

#: Seconds between two looks at the cluster's slots (some 10 ms of a CPU each), growing while a shard can't be reached.
LOOK_SECONDS = 0.1
MAX_LOOK_SECONDS = 0.5

#: Who serves the slots that were given to no node; a cluster that needs no full coverage goes on without them.
NOBODY = "slots that no node serves"
#: Names that are tried for one in a slot of a certain master. A master of a single slot is all but sure to be found.
PROBE_NAMES = 10 * REDIS_CLUSTER_HASH_SLOTS


class Cluster:
    """A Route of one link to the master of each shard."""

    spread = True

    def __init__(self, where: str, scheme: str, connector: Connector, options: ClusterOptions) -> None:
        self.on_connect: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        self._where = where
        self._scheme = scheme
        self._connector = connector
        self._seeds = options.seeds
        self._patience = min(connector.timeout, CONNECT_SECONDS)
        self._links: dict[str, Link[Pipeline]] = {}
        self._retired = 0  # reconnects of links that are gone
        self._looking: asyncio.Task[None] | None = None
        self._look_again = asyncio.Event()
        self._news = asyncio.Event()  # replaced with each change of slots or connections
        self._waiting = 0  # calls of ready()
        self._owners: dict[int, str] = {}  # as they were last looked at
        self._trouble = ""
        self._probes: dict[str, str] = {}  # a name in a slot of each master
        asking: dict[str, Any] = {
            "username": options.data.username,
            "password": options.data.password,
            "socket_timeout": self._patience / 2,
            "socket_connect_timeout": self._patience / 2,
            "protocol": 2,
            **options.data.tls_words,
        }
        try:
            nodes = [ClusterNode(host, port) for host, port in self._seeds]
            self._slots = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **asking).nodes_manager
        except (RedisError, TypeError, OSError) as error:
            raise StoreURLError(f"{where}: {error}") from None

    def servers(self) -> Sequence[Server]:
        cluster = Server("", bool(self._links) and not self._trouble, self._retired, self._trouble)
        return [
            *(
                Server(node, link.connected, max(0, link.reconnects), link.trouble)
                for node, link in self._links.items()
            ),
            cluster,
        ]

    def server_of(self, name: str) -> str:
        nodes = self._slots.slots_cache.get(key_slot(name.encode()))
        return str(nodes[0].name) if nodes else NOBODY

    def _reason(self) -> str:
        return next((server.trouble for server in self.servers() if server.trouble and not server.connected), "")

    async def open(self) -> None:
        if self._looking is not None:
            return
        self._look_again.set()
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        if self._looking is not None:
            await stop(self._looking)
        for link in self._links.values():
            await link.close()

    async def ready(self, name: str | None = None) -> None:
        # One event for all who wait: they may be thousands.
        self._waiting += 1
        try:
            while not self._is_ready(name):
                self._look_again.set()
                await self._news.wait()
        finally:
            self._waiting -= 1

    def _is_ready(self, name: str | None) -> bool:
        if name is None:
            return any(link.connected for link in self._links.values())
        link = self._links.get(self.server_of(name))
        return link is not None and link.connected

    async def probe(self) -> list[str] | None:
        masters = self._masters()
        troubles = dict(zip(masters, await asyncio.gather(*map(self._trouble_of, masters)), strict=True))
        unreachable = sorted(node for node, trouble in troubles.items() if trouble is not None)
        if len(unreachable) == len(masters):
            reasons = "; ".join(sorted({trouble for trouble in troubles.values() if trouble} or {self._reason()}))
            raise StoreUnavailable(f"no shard of {self._where} answers: {', '.join(unreachable)}; {reasons}")
        return unreachable if self._is_whole() else [*unreachable, NOBODY]

    async def _trouble_of(self, node: str) -> str | None:
        """What keeps a shard's master from serving claims, None if nothing does.

        It answers, is in a part of the cluster that serves, and takes a write (to a slot of its own).
        """
        try:
            async with asyncio.timeout(self._connector.timeout / 2):
                pipeline = self._link_to(node).connection
                state = await pipeline.call("CLUSTER", "INFO")
                if not isinstance(state, bytes) or b"cluster_state:ok" not in state:
                    return f"{node} is in no part of the cluster that serves"
                await try_write(pipeline, self._probe_key(node))
        except (StoreUnavailable, TimeoutError) as error:
            return str(error)
        return None

    def _probe_key(self, node: str) -> str:
        """A key in a slot of a master; found by trying, and again once that slot has moved."""
        name = self._probes.get(node)
        if name is None or self.server_of(name) != node:
            tags = map("probe-{}".format, range(PROBE_NAMES))
            name = self._probes[node] = next((tag for tag in tags if self.server_of(tag) == node), "probe")
        return f"pythonricing:{{{name}}}:probe"

    async def _look(self) -> None:
        """Ask the cluster who serves which slots, whenever something suggests that this has changed."""
        failures = 0
        while True:
            await self._look_again.wait()
            self._look_again.clear()
            try:
                # Those of the URL too: all nodes that were known may have gone.
                for host, port in self._seeds:
                    node = ClusterNode(host, port, **self._slots.connection_kwargs)
                    self._slots.startup_nodes.setdefault(node.name, node)
                await self._slots.initialize()
                self._trouble = "" if self._is_whole() else NOBODY
            except Exception as error:
                self._trouble = str(error)
                self._look_again.set()
                if not failures:
                    logger.warning("the slots of {} can't be read, trying again: {}", self._where, error)
            with suppress(Exception):  # one look in many: nothing waits for these connections
                await self._slots.aclose()
                await self._slots.aclose("startup_nodes")
            await self._follow()
            if self._waiting or not all(link.connected for link in self._links.values()):
                self._look_again.set()
            failures = failures + 1 if self._look_again.is_set() else 0
            ceiling = min(LOOK_SECONDS * 2**failures, MAX_LOOK_SECONDS)
            await asyncio.sleep(random.uniform(ceiling / 2, ceiling))

    async def _follow(self) -> None:
        """Connect to the masters of all shards, and leave nodes that are none and have nothing left to answer."""
        masters = self._masters()
        for node in masters:
            self._link_to(node)
        for node in self._links.keys() - set(masters):
            link = self._links[node]
            if not link.connected or link.connection.idle:
                del self._links[node]
                self._retired += max(0, link.reconnects)
                await link.close()
        owners = {slot: nodes[0].name for slot, nodes in self._slots.slots_cache.items()}
        if owners != self._owners:
            self._owners = owners
            self._tell_news()

    def _is_whole(self) -> bool:
        return len(self._slots.slots_cache) == REDIS_CLUSTER_HASH_SLOTS

    def _masters(self) -> list[str]:
        # Slots of one range share one list, and a master may have several ranges.
        ranges = {id(nodes): nodes for nodes in self._slots.slots_cache.values()}
        return list(dict.fromkeys(str(nodes[0].name) for nodes in ranges.values()))

    def _link_to(self, node: str) -> Link[Pipeline]:
        """The link to a node; made if it is the first time that this node is needed."""
        link = self._links.get(node)
        if link is None:
            where = f"{self._scheme}://{node}"
            link = self._links[node] = Link(
                where, partial(self._connect_to, node), self._tell_connected, lambda: self.on_disconnect()
            )
            link.open()
        return link

    async def _connect_to(self, node: str) -> Pipeline:
        host, _, port = node.rpartition(":")
        try:
            return await self._connector.open(Address(host, int(port)), self._patience, self._links[node].lost)
        except StoreUnavailable:
            self._look_again.set()
            raise

    def _tell_connected(self) -> None:
        self._tell_news()
        self.on_connect()

    def _tell_news(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def pipeline(self, name: str) -> Pipeline:
        node = self.server_of(name)
        if node == NOBODY:
            self._look_again.set()
            raise StoreUnavailable(f"no node of {self._where} serves {name}")
        return self._link_to(node).connection

    async def redirect(self, name: str, error: str, pipeline: Pipeline) -> tuple[Pipeline, bool]:
        kind, _, where = error.partition(" ")
        if kind not in ("MOVED", "ASK"):
            if kind == "CLUSTERDOWN":
                self._look_again.set()
            raise refused(error, pipeline)
        # Nothing was executed.
        if kind == "MOVED":
            self._look_again.set()
            with suppress(KeyError, RedisError):  # a slot that nobody served when it was looked; a node without a host
                await self._slots.move_slot(MovedError(where))
            if (node := self.server_of(name)) == NOBODY:
                raise StoreUnavailable(error)
            link = self._link_to(node)
        else:
            asked = AskError(where)
            link = self._link_to(f"{asked.host}:{asked.port}")
        try:
            async with asyncio.timeout(self._connector.timeout):
                await link.ready()
        except TimeoutError:
            raise StoreUnavailable(f"{error}: {link.trouble or 'no answer in time'}") from None
        return link.connection, kind == "ASK"
