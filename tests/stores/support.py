"""What several tests of the stores need: stores that are open, batches, and what a store says of its servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.counting.model import Answer, Batch, Seen, StoreError, StoreUnavailable, Word
from pythonricing.stores import create_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service
    from pythonricing.counting.counters import Counters
    from pythonricing.counting.store import Store

T = TypeVar("T")


@contextlib.asynccontextmanager
async def opened(url: str, patience: float = 20.0, **options: Any) -> AsyncIterator[Any]:
    """A store that is connected to all of its servers."""
    store = create_store(url, patience, **options)
    await store.open()
    try:
        await asyncio.wait_for(store.ready(), PATIENCE)  # one of a cluster's masters
        await until(lambda: all(server.connected for server in store.servers()))
        yield store
    finally:
        await store.close()


def batch(name: str, sequence: int, *sizes: int, **more: Any) -> Batch:
    fields = {"worker": "w", "attempt": 0, "keys": None, "seen": None, "create": None}
    return Batch(name=name, sequence=sequence, sizes=list(sizes), **{**fields, **more})


@contextlib.contextmanager
def lending(url: str, name: str) -> Iterator[None]:
    """Somebody holds a young lease of 8 numbers of a counter all the time; those of the one before are spent."""
    ended = threading.Event()

    async def lend() -> None:
        async with opened(url) as store:
            for sequence in itertools.count(1):
                if ended.is_set():
                    return
                await store.claim(batch(name, sequence, worker="lender", want=8))
                await asyncio.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        lends = pool.submit(asyncio.run, lend())
        try:
            yield
        finally:
            ended.set()
            lends.result()


async def scatter(url: str, name: str) -> None:
    """Leave two numbers of a new counter with the limit 1000: 2 and 4, which came back from a lease."""
    async with opened(url) as store:
        verdict = await store.claim(batch(name, 1, worker="lender", want=8))
        assert list(verdict.lent) == [(1, 8)]
        await store.claim(batch(name, 1, 992, worker="other"))
        await store.claim(batch(name, 2, worker="lender", back=[(2, 2), (4, 4)], held=[(1, 1), (3, 3), (5, 8)]))


def word(seen: Seen | None = None) -> Word:
    """An operator's word that has time."""
    return Word(uuid.uuid4().hex, 2**53, seen)


async def until(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(wait_until, condition, "it in a test's event loop")


async def persist(store: Store, act: Callable[[], Any], name: str | None = None) -> Any:
    """Do it until the store is available, as the heart does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await store.ready(name)
            try:
                return await act()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def in_the_end(act: Callable[[], Awaitable[T]]) -> T:
    """Do it until it succeeds, where the time-out that a test needs is short for a busy machine."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(StoreError):
                return await act()
            await asyncio.sleep(0.02)


async def claim_steadily(counters: Counters, answers: list[Answer | Exception], pause: float = 0.002) -> None:
    while True:
        try:
            answers.append(await counters.claim("seats"))
        except StoreError as error:
            answers.append(error)
        await asyncio.sleep(pause)


def assert_once_each(answers: list[Answer | Exception]) -> None:
    numbers = [answer.request_count for answer in answers if isinstance(answer, Answer) and answer.admitted]
    assert len(numbers) == len(set(numbers))


def calls(server: RedisServer, command: str) -> int:
    """How often a server has executed a command."""
    stats = server.info("commandstats").get(f"cmdstat_{command}", "calls=0")
    return int(stats.split(",")[0].removeprefix("calls="))


def links(store: Store) -> dict[str, bool]:
    """The servers of a store that have a name, and whether each is connected."""
    return {server.name: server.connected for server in store.servers() if server.name}


def elected(store: Store) -> str:
    """The server that Sentinels say is the one in charge; "" before they have said it."""
    return next((server.name for server in store.servers() if server.elected), "")


def connected(service: Service) -> dict[str, int]:
    """How many workers are connected to which server, as /metrics tells it."""
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    prefix = 'pythonricing_store_connected{node="'
    found = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {node: int(float(value)) for node, value in found}
