"""The heart on a store in memory: batches, the halted verdict, patience and its bounds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from pythonricing.counting import counters as heart
from pythonricing.counting import lane
from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import (
    Answer,
    Batch,
    Counter,
    NoSuchCounter,
    Overloaded,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    TooMany,
    Verdict,
    Word,
)
from pythonricing.stores.memory import MemoryStore
from tests.support import Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Gate(MemoryStore):
    """A real store in memory whose answers can be held back, as a slow network does."""

    def __init__(self) -> None:
        super().__init__()
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.batches: list[list[int]] = []

    async def claim(self, batch: Batch) -> Verdict:
        self.batches.append(list(batch.sizes))
        verdict = await super().claim(batch)
        await self.open_gate.wait()
        return verdict


def test_claims_of_one_tick_travel_together_and_later_ones_in_the_next_batch() -> None:
    async def scenario() -> None:
        store = Gate()
        counters = Counters(store, Journal())
        await counters.open()
        store.open_gate.clear()
        first = [asyncio.ensure_future(counters.claim("default")) for _ in range(5)]
        await asyncio.sleep(0.01)
        later = [asyncio.ensure_future(counters.claim("default", 2)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert store.batches == [[1] * 5]
        store.open_gate.set()
        answers = await asyncio.gather(*first, *later)
        assert store.batches == [[1] * 5, [2] * 3]
        assert [answer.request_count for answer in answers] == [1, 2, 3, 4, 5, 7, 9, 11]
        await counters.close()

    asyncio.run(scenario())


def test_a_batch_whose_reply_was_lost_is_sent_again_as_itself_although_others_left_meanwhile() -> None:
    class LosesReplies(MemoryStore):
        """Executes the first batch of `first`, and loses the reply once a batch of `second` has been executed too."""

        def __init__(self) -> None:
            super().__init__()
            self.executed: list[tuple[str, int]] = []
            self.others = asyncio.Event()

        async def claim(self, batch: Batch) -> Verdict:
            verdict = await super().claim(batch)
            self.executed.append((batch.name, batch.sequence))
            if batch.name == "second":
                self.others.set()
            elif len(self.executed) == 1:
                await self.others.wait()
                raise StoreUnavailable("the reply was lost")
            return verdict

    async def scenario() -> None:
        store = LosesReplies()
        counters = Counters(store, Journal())
        await counters.open()
        for name in ("first", "second"):
            await counters.put(name, 100)
        first = counters.claim("first", 3)
        await asyncio.sleep(0)
        second = counters.claim("second")
        assert [(await first).request_count, (await second).request_count] == [3, 1]
        assert store.executed == [("first", 1), ("second", 2), ("first", 1)]
        assert (await counters.read("first")).count == 3
        await counters.close()

    asyncio.run(scenario())


def test_a_batch_that_was_not_answered_for_too_long_is_in_doubt_and_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "RESEND_SECONDS", 0.05)

    class Away(MemoryStore):
        """Executes a batch, loses the reply, and can't be reached for longer than it remembers the batch."""

        batches = 0
        back = asyncio.Event()

        async def ready(self, name: str | None = None) -> None:
            if self.batches == 1:
                await self.back.wait()

        async def claim(self, batch: Batch) -> Verdict:
            self.batches += 1
            verdict = await super().claim(batch)
            if self.batches == 1:
                raise StoreUnavailable("the reply was lost")
            return verdict

    async def scenario() -> None:
        store, journal = Away(), Recorder()
        counters = Counters(store, journal, timeout=0.01)
        await counters.open()
        with pytest.raises(StoreUnavailable):
            await counters.claim("default")
        await asyncio.sleep(0.06)
        store.back.set()
        assert (await counters.claim("default")).request_count == 2
        assert ("in_doubt", "default", 1) in journal.told
        await counters.close()

    asyncio.run(scenario())


def test_a_word_of_an_operator_is_executed_once_and_never_after_it_was_given_up() -> None:
    class Late(MemoryStore):
        """Executes the first word and loses its reply; holds the second one back until it is let go."""

        words: ClassVar[list[Word]] = []

        async def put(self, name: str, word: Word, *what: Any) -> tuple[Counter, bool]:
            self.words.append(word)
            if len(self.words) == 1:
                await super().put(name, word, *what)
                raise StoreUnavailable("the reply was lost")
            if word.id != self.words[0].id:
                raise StoreUnavailable("held back")
            return await super().put(name, word, *what)

    async def scenario() -> None:
        store = Late()
        counters = Counters(store, Journal(), timeout=0.2)
        await counters.open()
        counter, created = await counters.put("seats", 10)
        assert (created, counter.revision) == (True, 1)  # the reply to the first one, again
        with pytest.raises(StoreUnavailable):
            await counters.put("seats", 20)
        # What was held back arrives now: by the store's clock it is too late.
        with pytest.raises(StoreUnavailable):
            await MemoryStore.put(store, "seats", store.words[-1], 20)
        assert (await counters.read("seats")).limit == 10
        await counters.close()

    asyncio.run(scenario())


def test_starting_default_over_keeps_the_limit_that_an_operator_gave_it() -> None:
    async def scenario() -> None:
        counters = Counters(MemoryStore(), Journal())
        await counters.open()
        await counters.put("default", 5)
        await counters.claim("default", 3)
        await counters.delete("default")
        counter = await counters.read("default")
        assert (counter.count, counter.limit) == (0, 5)
        await counters.close()

    asyncio.run(scenario())


def test_a_claim_above_the_largest_claim_takes_nothing_and_is_no_refusal() -> None:
    async def scenario() -> None:
        counters = Counters(MemoryStore(), Journal())
        await counters.open()
        await counters.put("seats", 99, most=10)
        for key in (None, "key"):
            with pytest.raises(TooMany):
                await counters.claim("seats", 11, key)
        assert (await counters.claim("seats", 10, "key")).request_count == 10
        await counters.close()

    asyncio.run(scenario())


def test_a_lost_counter_leaves_the_others_served_and_is_named() -> None:
    class Forgetful(MemoryStore):
        def forget(self, name: str) -> None:
            del self._states[name]

    async def scenario() -> None:
        store = Forgetful()
        counters = Counters(store, Journal())
        await counters.open()
        for name in ("seats", "codes"):
            await counters.put(name, 10)
            await counters.claim(name, 4)
        store.forget("seats")
        with pytest.raises(StateLost):
            await counters.claim("seats")
        assert (await counters.check()).lost == ["seats"]
        assert (await counters.claim("codes")).request_count == 5
        counter, created = await counters.put("seats", 10)
        assert (counter.count, created) == (4, False)
        assert (await counters.check()).lost == []
        await counters.close()

    asyncio.run(scenario())


def test_a_batch_has_a_bound() -> None:
    async def scenario() -> None:
        store = Gate()
        counters = Counters(store, Journal(), limit=10_000)
        await counters.open()
        await asyncio.gather(*(counters.claim("default") for _ in range(lane.MAX_BATCH + 1)))
        assert [len(batch) for batch in store.batches] == [lane.MAX_BATCH, 1]
        await counters.close()

    asyncio.run(scenario())


def test_a_halted_counter_is_refused_without_the_store_for_the_cache_time_only() -> None:
    async def scenario() -> None:
        store = Gate()
        counters = Counters(store, Journal(), limit=2, halt_cache=0.2)
        await counters.open()
        await counters.claim("default", 2)
        for _ in range(10):
            assert await counters.claim("default") == Answer(False, 2, 2)
        assert len(store.batches) == 1
        await asyncio.sleep(0.25)
        assert await counters.claim("default") == Answer(False, 2, 2)
        assert len(store.batches) == 2
        await counters.close()

    asyncio.run(scenario())


def test_refusals_from_memory_are_told_together_and_all_of_them_at_the_end() -> None:
    async def scenario() -> None:
        journal = Recorder()
        counters = Counters(MemoryStore(), journal, limit=1, halt_cache=60)
        await counters.open()
        await counters.claim("default")
        for _ in range(5):
            await counters.claim("default")
        assert not [event for event in journal.told if event[0] == "refused"]
        await asyncio.sleep(2 * lane.REFUSED_SECONDS)
        await counters.claim("default")
        await counters.close()
        assert [event for event in journal.told if event[0] == "refused"] == [
            ("refused", "default", 5),
            ("refused", "default", 1),
        ]

    asyncio.run(scenario())


def test_a_key_is_looked_up_although_the_counter_is_halted() -> None:
    async def scenario() -> None:
        counters = Counters(MemoryStore(), Journal(), limit=1, halt_cache=60)
        await counters.open()
        first = await counters.claim("default", 1, "key")
        assert not (await counters.claim("default")).admitted
        assert await counters.claim("default", 1, "key") == first
        await counters.close()

    asyncio.run(scenario())


def test_a_claim_waits_for_the_timeout_and_is_an_orphan_if_it_was_admitted_after_all() -> None:
    async def scenario() -> None:
        store, journal = Gate(), Recorder()
        counters = Counters(store, journal, timeout=0.1)
        await counters.open()
        store.open_gate.clear()
        with pytest.raises(StoreUnavailable):
            await counters.claim("default", 3)
        store.open_gate.set()
        await asyncio.sleep(0.05)
        assert ("unavailable", "default", 1) in journal.told
        assert ("orphaned", "default", 100, [(3, 3)]) in journal.told
        assert (await counters.claim("default")).request_count == 4
        await counters.close()

    asyncio.run(scenario())


def test_a_claim_that_waited_too_long_behind_a_batch_is_never_sent() -> None:
    async def scenario() -> None:
        store, journal = Gate(), Recorder()
        counters = Counters(store, journal, timeout=0.1)
        await counters.open()
        store.open_gate.clear()
        results = await asyncio.gather(
            *(counters.claim("default") for _ in range(2)),
            delayed(0.02, lambda: counters.claim("default", 5)),
            return_exceptions=True,
        )
        assert all(isinstance(result, StoreUnavailable) for result in results)
        store.open_gate.set()
        await asyncio.sleep(0.05)
        assert store.batches == [[1, 1]]
        await counters.close()

    asyncio.run(scenario())


async def delayed(seconds: float, claim: Callable[[], Awaitable[Answer]]) -> Answer:
    await asyncio.sleep(seconds)
    return await claim()


def test_the_settings_limit_is_set_once_the_store_takes_it() -> None:
    class Unsettled(Gate):
        """A store that is lost, and then full, at the first two attempts to configure it."""

        attempts = 0

        async def put(self, *what: Any) -> tuple[Counter, bool]:
            self.attempts += 1
            if self.attempts == 1:
                raise StoreUnavailable("the connection was lost")
            if self.attempts == 2:
                raise StoreRejected("OOM command not allowed when used memory > 'maxmemory'")
            return await super().put(*what)

    async def scenario() -> None:
        store = Unsettled()
        counters = Counters(store, Journal(), limit=7)
        await counters.open()
        assert (await counters.claim("default")).limit == 7
        assert store.attempts == 3
        await counters.close()

    asyncio.run(scenario())


class Distant(Gate):
    """A store whose answers take some ticks of the loop."""

    async def claim(self, batch: Batch) -> Verdict:
        verdict = await super().claim(batch)
        for _ in range(3):
            await asyncio.sleep(0)
        return verdict


def test_a_batch_gives_way_to_the_claims_that_the_last_answers_have_set_free() -> None:
    async def scenario() -> None:
        store = Distant()
        counters = Counters(store, Journal(), limit=10**6, lease=0)
        await counters.open()

        async def client(claims: int, pause: int) -> None:
            for _ in range(claims):
                assert (await counters.claim("default")).admitted
                for _ in range(pause):  # the way of the answer and of the next request, in ticks of the loop
                    await asyncio.sleep(0)

        await asyncio.gather(*(client(50, pause=1 + number % 2) for number in range(12)))
        assert max(len(sizes) for sizes in store.batches[20:]) >= 9
        assert len(store.batches) < 12 * 50 / 7
        await counters.close()

    asyncio.run(scenario())


def test_a_lone_claim_waits_for_nobody_once_the_others_have_gone() -> None:
    async def scenario() -> None:
        store = Gate()
        counters = Counters(store, Journal(), limit=10**6, lease=0)
        await counters.open()
        await asyncio.gather(*(counters.claim("default") for _ in range(12)))
        for _ in range(3):
            assert (await counters.claim("default")).admitted
        assert store.batches == [[1] * 12, [1], [1], [1]]
        await counters.close()

    asyncio.run(scenario())


def test_a_client_that_left_is_an_orphan() -> None:
    async def scenario() -> None:
        store, journal = Gate(), Recorder()
        counters = Counters(store, journal)
        await counters.open()
        store.open_gate.clear()
        task = asyncio.ensure_future(counters.claim("default"))
        await asyncio.sleep(0.01)
        task.cancel()
        store.open_gate.set()
        await asyncio.sleep(0.01)
        assert ("orphaned", "default", 100, [(1, 1)]) in journal.told
        await counters.close()

    asyncio.run(scenario())


def test_more_claims_than_a_worker_holds_are_turned_away_at_once() -> None:
    async def scenario() -> None:
        store = Gate()
        counters = Counters(store, Journal(), max_waiting=10)
        await counters.open()
        store.open_gate.clear()
        held = [counters.claim("default") for _ in range(5)]
        with pytest.raises(Overloaded):
            counters.claim("default")
        store.open_gate.set()
        assert all(answer.admitted for answer in await asyncio.gather(*held))
        assert (await counters.claim("default")).admitted
        await counters.close()

    asyncio.run(scenario())


def test_claims_on_a_counter_that_is_not_served_leave_room_for_others() -> None:
    class HalfDead(MemoryStore):
        """A store of two shards, one of which is away."""

        async def ready(self, name: str | None = None) -> None:
            if name in ("dead", "dead-too"):
                await asyncio.Event().wait()

    async def scenario() -> None:
        counters = Counters(HalfDead(), Journal(), max_waiting=100, timeout=60)
        await counters.open()
        for name in ("dead", "dead-too"):
            with suppress(Overloaded):
                for _ in range(1000):
                    counters.claim(name)
        assert (await counters.claim("default")).admitted

    asyncio.run(scenario())


def test_unknown_counters_are_not_remembered() -> None:
    async def scenario() -> None:
        counters = Counters(MemoryStore(), Journal())
        await counters.open()
        for number in range(100):
            with pytest.raises(NoSuchCounter):
                await counters.claim(f"nobody-{number}")
        assert counters.known() == set()
        await counters.close()

    asyncio.run(scenario())


def test_remembered_counters_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "MAX_LANES", 10)

    async def scenario() -> None:
        counters = Counters(MemoryStore(), Journal())
        await counters.open()
        for number in range(50):
            await counters.put(f"c{number}", 100)
            assert (await counters.claim(f"c{number}")).admitted
            assert (await counters.claim("c0")).request_count == number + 2
        # The one that was unused for longest goes first.
        assert counters.known() == {"c0", *(f"c{number}" for number in range(41, 50))}
        assert (await counters.claim("c1")).request_count == 2
        await counters.close()

    asyncio.run(scenario())


def test_an_error_of_the_store_is_told_and_never_an_admission() -> None:
    class Broken(MemoryStore):
        async def claim(self, batch: Batch) -> Verdict:
            raise StoreRejected("OOM command not allowed")

    async def scenario() -> None:
        journal = Recorder()
        counters = Counters(Broken(), journal)
        await counters.open()
        with pytest.raises(StoreUnavailable, match="OOM"):
            await counters.claim("default")
        assert [entry[0] for entry in journal.told] == ["unavailable", "failed"]
        await counters.close()

    asyncio.run(scenario())


def test_closing_answers_the_claims_on_their_way() -> None:
    async def scenario() -> None:
        store = Gate()
        counters = Counters(store, Journal())
        await counters.open()
        store.open_gate.clear()
        task = asyncio.ensure_future(counters.claim("default"))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, store.open_gate.set)
        await counters.close()
        assert (await task).admitted

    asyncio.run(scenario())


def test_a_read_that_met_a_lost_connection_is_tried_again() -> None:
    class Flickering(MemoryStore):
        failures = 2

        async def read(self, *arguments: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("the connection was lost")
            return await super().read(*arguments)

    async def scenario() -> None:
        counters = Counters(Flickering(), Journal())
        await counters.open()
        await counters.check()
        await counters.close()

    asyncio.run(scenario())
