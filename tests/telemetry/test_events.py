"""The events of those who watch: what has changed, or all there is for whoever missed something."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pythonricing.counting.counters import Counters
from pythonricing.stores.memory import MemoryStore
from pythonricing.telemetry import events
from pythonricing.telemetry.events import Event, Feed, Snapshot
from pythonricing.telemetry.metrics import Metrics
from pythonricing.telemetry.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, and events as fast as they are read."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(events, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(events, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(events, "FRESH_TIMES", 0)


def run(scenario: Callable[[Counters, Feed, Metrics], Awaitable[None]]) -> None:
    async def act() -> None:
        store = MemoryStore()
        metrics = Metrics(store, Writer(os.open(os.devnull, os.O_WRONLY)))
        counters = Counters(store, metrics)
        await counters.open()
        feed = Feed(Snapshot(counters), metrics, "memory://")
        with feed.watched():
            await scenario(counters, feed, metrics)
        await counters.close()

    asyncio.run(act())


async def told(feed: Feed, number: int, condition: Callable[[Event], bool] = lambda event: True) -> tuple[int, Event]:
    """The events after one, as a stream asks for them, until one is as it should be: its number, and it."""
    while True:
        event = msgspec.json.decode(await feed.after(number), type=Event)
        number = feed.number
        if condition(event):
            return number, event


def names(event: Event) -> list[str]:
    return [counter.name for counter in event.counters]


def test_the_first_is_whole_and_the_next_tells_changes() -> None:
    async def scenario(counters: Counters, feed: Feed, metrics: Metrics) -> None:
        for name in ("a", "b"):
            await counters.put(name, 10)
        number, first = await told(feed, 0, lambda event: len(event.counters) == 2)
        assert (first.whole, names(first)) == (True, ["a", "b"])
        await counters.claim("b", 3)
        _, changed = await told(feed, number, lambda event: [(c.count, c.admitted) for c in event.counters] == [(3, 1)])
        assert (changed.whole, names(changed)) == (False, ["b"])

    run(scenario)


def test_whoever_missed_an_event_gets_a_whole_one() -> None:
    async def scenario(counters: Counters, feed: Feed, metrics: Metrics) -> None:
        for name in ("a", "b"):
            await counters.put(name, 10)
        slow, _ = await told(feed, 0, lambda event: len(event.counters) == 2)
        await counters.claim("a")
        number, _ = await told(feed, slow, lambda event: names(event) == ["a"])
        await counters.claim("b")
        await told(feed, number, lambda event: names(event) == ["b"])
        _, event = await told(feed, slow)
        assert event.whole
        assert {counter.name: counter.count for counter in event.counters} == {"a": 1, "b": 1}

    run(scenario)


def test_all_counters_are_read_page_by_page_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAGE", 3)

    async def scenario(counters: Counters, feed: Feed, metrics: Metrics) -> None:
        for number in range(7):
            await counters.put(f"c{number}", 10)
        last, event = await told(feed, 0, lambda event: len(event.counters) >= 7)
        assert (names(event), event.more) == ([f"c{number}" for number in range(7)], False)
        monkeypatch.setattr(events, "MAX_READ", 6)
        last, event = await told(feed, last, lambda event: event.more)
        assert event.gone == ["c6"]

    run(scenario)


def test_reading_many_counters_takes_a_bounded_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What took long to read is shown for longer."""
    monkeypatch.setattr(events, "FRESH_TIMES", 1_000_000)

    async def scenario(counters: Counters, feed: Feed, metrics: Metrics) -> None:
        reads: list[Any] = []
        browse = counters.browse

        async def counting(*arguments: Any, **options: Any) -> Any:
            reads.append(arguments)
            return await browse(*arguments, **options)

        counters.browse = counting  # type: ignore[method-assign]
        number = 0
        for _ in range(5):
            number, _ = await told(feed, number)
        assert len(reads) == 1

    run(scenario)


def test_the_end_is_told_to_those_who_wait_and_to_those_who_come_late() -> None:
    async def scenario(counters: Counters, feed: Feed, metrics: Metrics) -> None:
        number, _ = await told(feed, 0)
        feed.close()
        assert await feed.after(number) == b""
        assert await feed.after(0) == b""

    run(scenario)
