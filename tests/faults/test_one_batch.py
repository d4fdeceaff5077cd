"""A worker has one batch of a counter on its way, whatever becomes of the counter meanwhile; receipts expire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.load import Load, put_counters
from loadtests.rig.victims import RedisVictim
from loadtests.rig.waiting import PATIENCE
from pythonricing.counting.counters import UNWANTED_SECONDS, Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.lane import RESEND_SECONDS
from pythonricing.counting.model import RECEIPT_SECONDS, NoSuchCounter, StateLost
from pythonricing.stores.memory import MemoryStore
from tests.stores.support import word

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim
    from pythonricing.counting.model import Batch, Verdict


class Slow(MemoryStore):
    """A store in memory that can be made to wait before it executes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.on_their_way = self.at_most = 0

    def lose_everything(self) -> None:
        MemoryStore.__init__(self)

    async def claim(self, batch: Batch) -> Verdict:
        self.on_their_way += 1
        self.at_most = max(self.at_most, self.on_their_way)
        try:
            await self.gate.wait()
            return await super().claim(batch)
        finally:
            self.on_their_way -= 1


def test_closing_waits_for_claims_that_somebody_waits_for_and_hardly_for_others() -> None:
    async def scenario() -> None:
        store = Slow()
        counters = Counters(store, Journal(), timeout=10 * PATIENCE)
        await counters.open()
        store.gate.clear()
        cut_off = counters.claim("default")
        await asyncio.sleep(0.01)
        cut_off.cancel()  # as a server's time to stop is over
        await asyncio.wait_for(counters.close(), PATIENCE)

        store = Slow()
        counters = Counters(store, Journal(), timeout=10 * PATIENCE)
        await counters.open()
        store.gate.clear()
        claim = counters.claim("default")
        closing = asyncio.ensure_future(counters.close())
        await asyncio.sleep(2 * UNWANTED_SECONDS)
        store.gate.set()
        assert (await claim).admitted
        await closing

    asyncio.run(scenario())


def test_a_lost_counter_that_is_deleted_while_a_batch_is_on_its_way() -> None:
    async def scenario() -> None:
        store = Slow()
        counters = Counters(store, Journal())
        await counters.open()
        await counters.put("seats", 10)
        await counters.claim("seats")
        store.lose_everything()
        with pytest.raises(StateLost):
            await counters.claim("seats")
        store.gate.clear()
        first = asyncio.ensure_future(counters.claim("seats"))
        await asyncio.sleep(0.01)
        await store.put("seats", word(), 1)
        await store.delete("seats", word())
        await counters.check()
        second = asyncio.ensure_future(counters.claim("seats"))
        await asyncio.sleep(0.01)
        store.gate.set()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NoSuchCounter, NoSuchCounter]
        assert store.at_most == 1
        await counters.close()

    asyncio.run(scenario())


def test_receipts_expire_well_after_any_repeat_can_come(victim: Victim, service: Callable[..., Service]) -> None:
    if not isinstance(victim, RedisVictim):
        pytest.skip("Redis only")
    running = service(victim.url, "/readyz")
    put_counters(running, 1_000)
    Load(running, 200).join()
    server = victim.server
    source = (
        "local t = {} for _, k in ipairs(redis.call('KEYS', '*:receipt:*')) do t[#t + 1] = redis.call('TTL', k) end"
    )
    shortest = server.command("EVAL", f'"{source} table.sort(t) return t[1] or -3"', "0")
    longest = server.command("EVAL", f'"{source} table.sort(t) return t[#t] or -3"', "0")
    assert 2 * RESEND_SECONDS < int(shortest[1:]) <= int(longest[1:]) <= RECEIPT_SECONDS
