"""Leases in the heart: what is admitted without asking, for how long, and what becomes of the rest."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import (
    Answer,
    NoSuchCounter,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    TooMany,
    Word,
)
from pythonricing.counting.rules import total
from pythonricing.stores.memory import MemoryStore
from tests.support import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from pythonricing.counting.model import Batch, Verdict

FAR = 10**6


class Clock:
    """Seconds that pass when they are told to, for workers and stores alike."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shared(MemoryStore):
    """Memory that several workers share, by a clock of its own; keeps what was sent to it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.batches: list[Batch] = []
        #: What was left before each lease, and how much was lent.
        self.lent: list[tuple[int, int]] = []
        self.refusing: Exception | None = None
        self.sent = asyncio.Event()

    def _now(self) -> int:
        return int(self._clock.now * 1e6)

    async def claim(self, batch: Batch) -> Verdict:
        self.sent.set()
        await asyncio.sleep(0)  # as if it were away
        if self.refusing is not None:
            raise self.refusing
        self.batches.append(batch)
        verdict = await super().claim(batch)
        if verdict.lent:
            state, lent = self._states[batch.name], total(verdict.lent)
            self.lent.append((state.limit - state.count + lent, lent))
        return verdict


class World:
    """Workers on one store."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Shared(self.clock)

    async def worker(self, journal: Journal | None = None, **options: Any) -> Counters:
        options = {"lease": 0.01, "halt_cache": 0.0, **options}
        counters = Counters(self.store, journal or Journal(), clock=self.clock, **options)
        await counters.open()
        return counters

    async def busy(self, counters: Counters, name: str = "seats") -> list[int]:
        """Claim often enough for a lease to be worth it; returns the numbers."""
        numbers = []
        for _ in range(60):
            self.clock.now += 0.001
            numbers.append((await counters.claim(name)).request_count)
            counters._worker.tell()  # what a timer does
        await settled()
        return numbers

    def state(self, name: str = "seats") -> Any:
        return self.store._states[name]

    def held(self, name: str = "seats") -> int:
        return sum(last - first + 1 for lease in self.state(name).leases.values() for first, last in lease.runs)

    async def returned(self) -> None:
        """Wait until nothing is leased; workers have timers of their own, on the real clock."""
        async with asyncio.timeout(20):
            while self.held():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


async def settled() -> None:
    """Let everything happen that waits for nothing but the loop."""
    for _ in range(50):
        await asyncio.sleep(0)


def scenario(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test(World()))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@scenario
async def test_a_busy_worker_admits_without_asking(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    first = await world.busy(worker)
    asked = len(world.store.batches)
    answers = [worker.claim("seats") for _ in range(5)]
    assert all(answer.done() for answer in answers)
    numbers = first + [answer.result().request_count for answer in answers]
    assert sorted(numbers) == list(range(1, 66))
    assert len(world.store.batches) == asked
    await worker.close()


@scenario
async def test_a_worker_that_claims_now_and_then_asks_for_nothing_ahead(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    for number in range(1, 20):
        world.clock.now += 0.05
        assert (await worker.claim("seats")).request_count == number
    assert not any(batch.want for batch in world.store.batches)
    await worker.close()


@scenario
async def test_leases_are_off_if_the_settings_say_so(world: World) -> None:
    worker = await world.worker(lease=0)
    await worker.put("seats", FAR)
    assert await world.busy(worker) == list(range(1, 61))
    assert len(world.store.batches) == 60
    assert not any(batch.want for batch in world.store.batches)
    await worker.close()


@scenario
async def test_a_counter_of_a_hundred_knows_no_lease(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", 100)
    assert await world.busy(worker) == list(range(1, 61))
    assert any(batch.want for batch in world.store.batches)
    assert world.held() == 0
    await worker.close()


@scenario
async def test_a_lease_is_a_sixty_fourth_of_what_is_left_at_most(world: World) -> None:
    worker = await world.worker(lease=10)
    await worker.put("seats", 1000)
    for _ in range(40):
        await world.busy(worker)
    assert world.state().count == 1000
    assert world.store.lent[0][1] > 10
    assert all(4 <= lent <= left // 64 for left, lent in world.store.lent)
    assert min(left for left, _ in world.store.lent) >= 256
    await worker.close()


@scenario
async def test_a_lease_is_renewed_before_it_is_empty(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    for _ in range(300):
        world.clock.now += 0.001
        answer = worker.claim("seats")
        assert answer.done()
        worker._worker.tell()
        await settled()
    assert world.state().moved == 0
    await worker.close()


@scenario
async def test_a_run_is_not_used_after_its_time_even_if_the_worker_slept_meanwhile(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    held = world.held()
    assert held > 10
    world.clock.now += 0.1
    answer = worker.claim("seats")
    assert not answer.done()
    before = world.state().issued
    assert (await answer).request_count <= before  # what came back is given first
    assert world.state().issued <= before + held
    await worker.close()


@scenario
async def test_what_an_idle_worker_holds_comes_back(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    given = await world.busy(worker)
    assert world.held() > 10
    world.clock.now += 0.2
    await world.returned()
    assert world.state().count == len(given)
    counter = await worker.read("seats")
    assert (counter.count, counter.leased) == (len(given), 0)
    await worker.close()


@scenario
async def test_a_worker_that_stops_gives_its_lease_back(world: World) -> None:
    recorder = Recorder()
    worker = await world.worker(recorder)
    await worker.put("seats", FAR)
    given = await world.busy(worker)
    given.append(worker.claim("seats").result().request_count)
    await worker.close()
    assert world.held() == 0
    assert world.state().count == len(given)
    admitted = [number for told in recorder.told if told[0] == "settled" for number, _ in told[3]]
    assert sorted(admitted) == sorted(given)


@scenario
async def test_a_lease_ends_with_a_connection(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    world.store.on_disconnect()
    answer = worker.claim("seats")
    assert not answer.done()
    await answer
    assert any(batch.back for batch in world.store.batches)
    await worker.close()


@scenario
async def test_what_was_lent_while_a_connection_was_lost_is_not_used(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    world.clock.now += 0.1
    world.store.sent.clear()
    answer = worker.claim("seats")
    await world.store.sent.wait()
    world.store.on_disconnect()
    await answer
    assert world.store.lent
    assert not worker.claim("seats").done()
    await settled()
    await worker.close()
    assert world.held() == 0


@scenario
async def test_a_change_by_another_worker_ends_a_lease_and_the_rest_comes_back(world: World) -> None:
    worker, other = await world.worker(), await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    await other.put("seats", 2 * FAR)
    assert (await worker.claim("seats")).limit == FAR  # it doesn't know yet
    issued = world.state().issued
    assert (await worker.claim("seats", key="k")).limit == 2 * FAR
    answer = await worker.claim("seats")
    assert (answer.limit, answer.request_count) > (2 * FAR, issued)
    for counters in (worker, other):
        await counters.close()
    assert world.state().count == 63


@scenario
async def test_after_a_reset_no_number_of_the_epoch_before_is_given(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    await worker.restart("seats")
    assert (await worker.claim("seats")).request_count == 1
    await worker.close()
    assert world.state().count == 1


@scenario
async def test_a_reset_by_another_worker_is_known_when_the_lease_is_over(world: World) -> None:
    worker, other = await world.worker(), await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    await other.restart("seats")
    assert worker.claim("seats").done()  # of the epoch that is over
    world.clock.now += 0.1
    assert (await worker.claim("seats")).request_count == 1
    for counters in (worker, other):
        await counters.close()
    assert world.state().count == 1


@scenario
async def test_a_loss_ends_a_lease_and_its_numbers_are_spent(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    issued = world.state().issued
    world.store._states.clear()
    with pytest.raises(StateLost):
        await worker.claim("seats", key="k")
    with pytest.raises(StateLost):
        await worker.claim("seats")
    await worker.put("seats", FAR)
    assert (await worker.claim("seats")).request_count == issued + 1
    await worker.close()


@scenario
async def test_claims_with_a_key_go_to_the_store(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    answer = await worker.claim("seats", key="order")
    assert await worker.claim("seats", key="order") == answer
    await worker.close()


@scenario
async def test_larger_claims_get_one_run_from_the_lease_or_from_the_store(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    owned = await world.busy(worker)
    for size in (3, 7, 70, 2, 1, 9, 40):
        answer = await worker.claim("seats", size)
        assert answer.admitted
        assert not answer.numbers
        owned += range(answer.request_count - size + 1, answer.request_count + 1)
    assert len(set(owned)) == len(owned)
    await worker.close()


@scenario
async def test_a_claim_that_is_too_large_gets_nothing_from_a_lease_either(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR, most=3)
    await world.busy(worker)
    assert (await worker.claim("seats", 3)).admitted
    with pytest.raises(TooMany):
        await worker.claim("seats", 4)
    await worker.close()


@scenario
async def test_a_counter_is_not_halted_from_memory_while_a_lease_may_come_back(world: World) -> None:
    worker, other = await world.worker(), await world.worker(halt_cache=60.0)
    await worker.put("seats", 1000)
    await world.busy(worker)
    assert (await other.claim("seats", 1000 - world.state().count)).admitted
    worker._lanes["seats"].end_lease()
    await settled()
    assert (await other.claim("seats")).admitted
    for counters in (worker, other):
        await counters.close()


async def nearly_sold_out(world: World) -> AsyncIterator[Counters]:
    """A worker that holds a lease on a counter of which nothing else is left, and another one that has none."""
    worker = await world.worker()
    await worker.put("seats", 1000)
    await world.busy(worker)
    held = world.held()
    assert held
    other = await world.worker()
    assert (await other.claim("seats", 1000 - world.state().count)).admitted
    yield worker
    yield other
    for counters in (worker, other):
        await counters.close()


@scenario
async def test_a_claim_waits_for_a_lease_that_may_come_back(world: World) -> None:
    workers = nearly_sold_out(world)
    worker, other = await anext(workers), await anext(workers)
    held = worker._lanes["seats"].lease.left
    waiting = other.claim("seats")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    world.clock.now += 0.1
    worker._lanes["seats"].end_lease()
    answer = await waiting
    assert answer.admitted
    assert answer.request_count <= 1000
    assert world.state().count == 1000 - held + 1
    with suppress(StopAsyncIteration):
        await anext(workers)


@scenario
async def test_a_claim_is_refused_once_a_lease_will_not_come_back(world: World) -> None:
    workers = nearly_sold_out(world)
    _, other = await anext(workers), await anext(workers)
    waiting = other.claim("seats", key="order")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    world.clock.now += 0.3
    assert await waiting == Answer(False, 1000, 1000)
    with suppress(StopAsyncIteration):
        await anext(workers)


@scenario
async def test_a_worker_does_not_wait_for_its_own_lease(world: World) -> None:
    workers = nearly_sold_out(world)
    worker, _ = await anext(workers), await anext(workers)
    held = worker._lanes["seats"].lease.left
    answer = await worker.claim("seats", key="order")
    assert answer.admitted
    assert world.state().count == 1000 - held + 1
    with suppress(StopAsyncIteration):
        await anext(workers)


@scenario
async def test_where_only_scattered_numbers_are_left_a_claim_gets_several_runs(world: World) -> None:
    workers = nearly_sold_out(world)
    worker, other = await anext(workers), await anext(workers)
    lane = worker._lanes["seats"]
    (first, last), *_ = lane.lease.held()
    lane.lease.drop()
    lane.lease.back = [(first, first), (first + 2, last)]  # as if the number in between had been given
    lane.end_lease()
    await settled()
    answer = await other.claim("seats", last - first, key="order")
    assert answer == Answer(True, last, 1000, ((first, first), (first + 2, last)))
    assert await other.claim("seats", last - first, key="order") == answer
    with suppress(StopAsyncIteration):
        await anext(workers)


@scenario
async def test_a_return_that_the_store_refuses_is_tried_again(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    given = await world.busy(worker)
    world.store.refusing = StoreRejected("OOM")
    worker._lanes["seats"].end_lease()
    await settled()
    assert world.held()
    world.store.refusing = None
    await world.returned()
    assert world.state().count == len(given)
    await worker.close()


@scenario
async def test_a_repeat_returns_and_lends_nothing_twice(world: World) -> None:
    worker = await world.worker(timeout=0.5)
    await worker.put("seats", FAR)
    given = await world.busy(worker)
    claim = world.store.claim

    async def lose_reply(batch: Batch) -> Verdict:
        world.store.claim = claim  # type: ignore[method-assign]
        await claim(batch)
        raise StoreUnavailable("the reply was lost")

    world.clock.now += 0.1
    world.store.claim = lose_reply  # type: ignore[method-assign]
    given.append((await worker.claim("seats")).request_count)
    await settled()
    await worker.close()
    assert world.state().count == len(given) == len(set(given))


@scenario
async def test_what_was_lent_to_a_worker_that_stops_goes_back_too(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    given = await world.busy(worker)
    world.clock.now += 0.1
    world.store.sent.clear()
    waiting = worker.claim("seats")
    await world.store.sent.wait()
    await worker.close()
    given.append((await waiting).request_count)
    assert world.store.batches[-2].want
    assert world.held() == 0
    assert world.state().count == len(given) == len(set(given))


@scenario
async def test_a_reset_while_a_batch_is_on_its_way_frees_no_number_of_the_new_epoch(world: World) -> None:
    worker, other = await world.worker(), await world.worker()
    await worker.put("seats", FAR)
    await world.busy(worker)
    lane = worker._lanes["seats"]
    while lane.lease.left > 4:
        await worker.claim("seats")
    worker._worker.tell()
    [(first, last)] = lane.lease.held()
    claim, arrives = world.store.claim, asyncio.Event()

    async def late(batch: Batch) -> Verdict:
        if batch.worker == worker._worker.id:
            await arrives.wait()
        return await claim(batch)

    world.store.claim = late  # type: ignore[method-assign]
    world.clock.now += 0.05
    waiting = worker.claim("seats", key="order")
    await settled()
    # The lease's time is over while the batch is on its way, and so is its epoch.
    world.clock.now += 0.05
    lane.lease.expire()
    await other.restart("seats")
    await other.claim("seats", first - 2)
    arrives.set()
    owned = [(await waiting).request_count]
    # What is lent now has the numbers that were put aside.
    assert lane.lease.held()[0][0] == first
    assert lane.lease.held()[0][1] >= last
    for _ in range(20):
        owned.append((await worker.claim("seats")).request_count)
        owned.append((await other.claim("seats")).request_count)
    assert len(set(owned)) == len(owned)
    for counters in (worker, other):
        await counters.close()
    assert world.state().count == len(owned) + first - 2


@scenario
async def test_an_answer_from_before_a_counter_came_back_ends_no_lease_of_the_new_one(world: World) -> None:
    worker = await world.worker()
    await worker.put("seats", FAR)
    deletion = await world.store.delete("seats", Word("d", 2**53))
    read = world.store.read

    async def late(*arguments: Any, **options: Any) -> Any:
        raise NoSuchCounter("seats", deletion)  # asked before the counter came back, and answered after it

    await worker.put("seats", FAR)
    given = await world.busy(worker)
    assert worker._lanes["seats"].lease.left
    world.store.read = late  # type: ignore[method-assign]
    with pytest.raises(NoSuchCounter):
        await worker.read("seats")
    world.store.read = read  # type: ignore[method-assign]
    world.clock.now += 0.1
    await world.returned()
    assert world.state().count == len(given)
    await worker.close()
