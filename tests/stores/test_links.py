"""A connection to a store is opened once, and let go of even when a cancellation gets lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio.cluster import NodesManager

from loadtests.rig.waiting import PATIENCE
from pythonricing.stores import create_store
from pythonricing.stores.link import Link
from pythonricing.stores.redis.routes.sentinel import Sentinels

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer


class Stubborn:
    """Never connects, and swallows the first cancellation, as `asyncio.wait_for` of Python 3.11 may."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def __call__(self, *_: Any) -> Any:
        self.called.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        raise OSError("nobody there")


def test_a_link_that_connects_is_closed_although_a_cancellation_is_lost() -> None:
    async def scenario() -> None:
        stubborn = Stubborn()
        link: Link[Any] = Link("nowhere", stubborn)
        link.open()
        await stubborn.called.wait()
        await link.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@pytest.mark.parametrize(
    ("url", "asks", "how"),
    [
        ("redis+cluster://127.0.0.1:1", NodesManager, "initialize"),
        ("redis+sentinel://127.0.0.1:1/service", Sentinels, "discover_master"),
    ],
)
def test_a_store_that_asks_for_its_servers_is_closed_although_a_cancellation_is_lost(
    url: str, asks: type, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        stubborn = Stubborn()
        monkeypatch.setattr(asks, how, stubborn)
        store = create_store(url, 1.0)
        await store.open()
        await stubborn.called.wait()
        await store.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_store_that_several_open_is_connected_once(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server()

    async def scenario() -> None:
        store = create_store(server.url, 10.0)
        await store.open()
        await store.open()
        await store.ready()
        await asyncio.sleep(0.2)  # a second one would be there by now
        assert server.run("CLIENT", "LIST").count("name=pythonricing-") == 1
        await store.close()

    asyncio.run(scenario())
