"""The heart with holds, give-backs, claimants and windows, on a store in memory."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pythonricing.counting.counters import Counters
from pythonricing.counting.holds import expire
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import (
    MAX_NUMBERS,
    REFUSED_KEY_SECONDS,
    BadRules,
    ClaimantMissing,
    ClaimantUnwanted,
    HoldExpired,
    HoldResolved,
    KeyReused,
    NoSuchCounter,
    NoSuchHold,
    NoSuchNumber,
    Resolution,
    StateLost,
    TooMany,
)
from pythonricing.stores.memory import MemoryStore
from tests.support import Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Clocked(MemoryStore):
    """A store whose clock the test moves."""

    ahead = 0

    def _now(self) -> int:
        return super()._now() + self.ahead * 1_000_000


def run(scenario: Callable[[Counters, Clocked], Awaitable[Any]], journal: Journal | None = None) -> Any:
    async def all_of_it() -> Any:
        store = Clocked()
        counters = Counters(store, journal or Journal())
        await counters.open()
        try:
            return await scenario(counters, store)
        finally:
            await counters.close()

    return asyncio.run(all_of_it())


def test_a_hold_is_answered_with_an_id_that_nobody_can_guess_and_when_it_expires() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 10)
        first, second = await counters.claim("seats", 2, hold=60), await counters.claim("seats", hold=60)
        assert len(first.hold) >= 22
        assert first.hold != second.hold
        assert 60 < first.expires - store._now() / 1e6 <= 61
        assert (first.request_count, second.request_count) == (2, 3)
        assert (await counters.read("seats")).held == 3

    run(scenario)


def test_a_hold_is_confirmed_released_or_expired_and_says_so_afterwards() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 10)
        one, other, third = [(await counters.claim("seats", 2, hold=60)).hold for _ in range(3)]
        assert (await counters.confirm("seats", one))[0].numbers == ((1, 2),)
        assert (await counters.confirm("seats", one, 2))[0].numbers == ((1, 2),)
        await counters.release("seats", other)
        await counters.release("seats", other)
        for act in (
            counters.release("seats", one),
            counters.confirm("seats", one, 1),
            counters.confirm("seats", other),
        ):
            with pytest.raises(HoldResolved):
                await act
        with pytest.raises(TooMany):
            await counters.confirm("seats", third, 3)
        with pytest.raises(NoSuchHold):
            await counters.confirm("seats", "unknown")
        store.ahead = 61
        with pytest.raises(HoldExpired):
            await counters.confirm("seats", third)
        assert (await counters.read("seats")).count == 2

    recorder = Recorder()
    run(scenario, recorder)
    assert ("expired", "seats", 2) in recorder.told
    assert sum(event[0] == "resolved" for event in recorder.told) == 2  # what is asked for again is not told again


def test_a_halted_counter_admits_again_at_once_after_a_give_back_by_this_worker() -> None:
    async def scenario(counters: Counters, _: Clocked) -> None:
        await counters.put("seats", 4)
        await counters.claim("seats", 4)
        assert not (await counters.claim("seats")).admitted
        assert (await counters.give_back("seats", [(2, 3)]))[0] == 2
        assert (await counters.claim("seats", 2)).request_count == 6
        with pytest.raises(NoSuchNumber):
            await counters.give_back("seats", [(7, 7)])
        with pytest.raises(TooMany):
            await counters.give_back("seats", [(1, MAX_NUMBERS + 1)])
        for never in ((0, 1), (-2, -1), (3, 2)):
            with pytest.raises(ValueError, match="number"):
                await counters.give_back("seats", [never])

    recorder = Recorder()
    run(scenario, recorder)
    assert ("given_back", "seats", [(2, 3)], 2) in recorder.told


def test_each_claim_of_a_batch_gets_its_own_answer() -> None:
    async def scenario(counters: Counters, _: Clocked) -> None:
        await counters.put("seats", 10, each=3)
        claims = [
            counters.claim("seats", 2, claimant="alice"),
            counters.claim("seats", 2, claimant="alice"),
            counters.claim("seats", 1),
            counters.claim("seats", 1, "order", claimant="alice", hold=60),
            counters.claim("seats", 3, claimant="bob"),
        ]
        first, capped, nobody, held, other = await asyncio.gather(*claims, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert not isinstance(capped, BaseException)
        assert not isinstance(held, BaseException)
        assert not isinstance(other, BaseException)
        assert first.request_count == 2
        assert (capped.admitted, capped.capped) == (False, True)
        assert isinstance(nobody, ClaimantMissing)
        assert held.request_count == 3
        assert other.request_count == 6
        again = await counters.claim("seats", 1, "order", claimant="alice", hold=60)
        assert again == held
        for claim in (
            counters.claim("seats", 1, "order", claimant="bob", hold=60),
            counters.claim("seats", 1, "order", claimant="alice"),
        ):
            with pytest.raises(KeyReused):
                await claim
        await counters.put("cups", 10)
        with pytest.raises(ClaimantUnwanted):
            await counters.claim("cups", claimant="alice")

    run(scenario)


def test_a_refusal_says_when_waiting_may_help() -> None:
    async def scenario(counters: Counters, _: Clocked) -> None:
        await counters.put("seats", 1, every="1d")
        await counters.claim("seats", hold=60)
        refusal = await counters.claim("seats")
        assert 0 < refusal.resets <= 86_400
        assert 0 < refusal.retry_after <= min(61, refusal.resets)
        await counters.put("cups", 0)
        assert (await counters.claim("cups")).retry_after == 0

    run(scenario)


def test_no_claim_is_refused_while_holds_are_over_whose_numbers_have_not_gone_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pythonricing.stores.memory.expire", partial(expire, most=1))
    monkeypatch.setattr("pythonricing.counting.lane.AGAIN_SECONDS", 0.2)  # so that it takes longer than for leases

    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 7)
        for _ in range(6):
            await counters.claim("seats", hold=60)
        store.ahead = 61
        assert (await counters.claim("seats", 7)).request_count == 13
        assert not (await counters.claim("seats")).admitted

    run(scenario)


def test_numbers_of_a_window_that_is_over_can_not_be_given_back() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 9, every="1h")
        await counters.claim("seats", 5)
        store.ahead = 3600
        with pytest.raises(NoSuchNumber):
            await counters.give_back("seats", [(5, 5)])
        await counters.claim("seats", 5)
        assert (await counters.give_back("seats", [(5, 5)]))[0] == 1

        # A word that is held up until the window is over.
        clock = store.clock

        async def slow(name: str) -> int:
            store.ahead += 3600
            return await clock(name)

        store.clock = slow  # type: ignore[method-assign]
        with pytest.raises(NoSuchNumber):
            await counters.give_back("seats", [(4, 4)])

    run(scenario)


def test_a_counter_that_renewed_admits_again() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 1, every="1d")
        await counters.claim("seats")
        store.ahead = 86_400
        await asyncio.sleep(counters._worker.halt_cache)
        assert (await counters.claim("seats")).request_count == 1

    run(scenario)


@pytest.mark.parametrize("rules", [{"each": 11}, {"every": "0s"}, {"every": "day", "zone": "Nowhere"}])
def test_bad_rules_change_nothing(rules: dict[str, Any]) -> None:
    async def scenario(counters: Counters, _: Clocked) -> None:
        await counters.put("seats", 10, each=3)
        with pytest.raises(BadRules):
            await counters.put("seats", 10, **rules)
        assert (await counters.read("seats")).each == 3

    run(scenario)


def test_waiting_for_holds_helps_only_a_claim_that_they_leave_room_for() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 5)
        await counters.claim("seats", 2, hold=60)
        await counters.claim("seats", 1)
        assert (await counters.claim("seats", 4)).retry_after > 59
        assert (await counters.claim("seats", 5)).retry_after == 0
        await counters.claim("seats", 2)
        for size, helps in ((1, True), (2, True), (3, False), (6, False)):  # from the store, and from memory
            for _ in range(2):
                assert ((await counters.claim("seats", size)).retry_after > 0) is helps
        await counters.put("cups", 3, every="1d")
        await counters.claim("cups", hold=60)
        await counters.claim("cups", 2)
        refused = await counters.claim("cups", 2)
        assert refused.retry_after == refused.resets > 0
        assert (await counters.claim("cups", 4)).retry_after == 0

    run(scenario)


def test_waiting_for_holds_helps_no_claimant_who_has_too_many() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 10, each=2)
        await counters.claim("seats", 2, claimant="alice")
        await counters.claim("seats", 1, claimant="bob", hold=60)
        refused = await counters.claim("seats", 1, claimant="alice")
        assert (refused.capped, refused.each, refused.retry_after) == (True, 2, 0)
        await counters.put("seats", 3, each=2)
        refused = await counters.claim("seats", 1, claimant="carol")
        assert (refused.capped, refused.each, refused.retry_after > 0) == (False, 2, True)

    run(scenario)


def test_a_key_that_is_refused_because_of_a_hold_may_come_again_after_it() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 1)
        await counters.claim("seats", hold=2)
        for key in ("k", None):
            assert 0 < (await counters.claim("seats", key=key)).retry_after <= 3
        store.ahead = 4
        assert (await counters.claim("seats", key="k")).admitted

    run(scenario)


def test_a_key_whose_refusal_is_remembered_is_told_to_wait_until_it_is_forgotten() -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        await counters.put("seats", 1)
        await counters.claim("seats")
        assert (await counters.claim("seats", key="k")).retry_after == 0
        await counters.give_back("seats", [(1, 1)])
        again = await counters.claim("seats", key="k")
        assert (again.admitted, again.retry_after) == (False, REFUSED_KEY_SECONDS)

    run(scenario)


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda counters: counters.claim("seats", hold=True), TypeError),
        (lambda counters: counters.claim("seats", hold=1.5), TypeError),
        (lambda counters: counters.claim("seats", hold="5"), TypeError),
        (lambda counters: counters.claim("seats", hold=None, claimant="x"), TypeError),
        (lambda counters: counters.claim("seats", hold=86_401), ValueError),
        (lambda counters: counters.claim("seats", hold=-1), ValueError),
        (lambda counters: counters.claim("seats", claimant=5), TypeError),
        (lambda counters: counters.claim("seats", claimant="\ud800"), ValueError),
        (lambda counters: counters.claim("seats", claimant="x" * 129), ValueError),
        (lambda counters: counters.confirm("seats", None), TypeError),
        (lambda counters: counters.release("seats", b"x"), TypeError),
        (lambda counters: counters.confirm("seats", "\ud800"), NoSuchHold),
        (lambda counters: counters.confirm("seats", "A" * 100_000), NoSuchHold),
        (lambda counters: counters.confirm("seats", "A" * 22, True), TypeError),
        (lambda counters: counters.confirm("seats", "A" * 22, 1.0), TypeError),
        (lambda counters: counters.confirm("seats", "A" * 22, 0), ValueError),
        (lambda counters: counters.confirm("seats", "A" * 22, 2**53), ValueError),
        (lambda counters: counters.give_back("seats", [(1.0, 2)]), TypeError),
        (lambda counters: counters.give_back("seats", [(True, True)]), TypeError),
        (lambda counters: counters.give_back("seats", [(1,)]), TypeError),
        (lambda counters: counters.give_back("seats", [1]), TypeError),
        (lambda counters: counters.give_back("seats", [(0, 1)]), ValueError),
        (lambda counters: counters.give_back("seats", [(2, 1)]), ValueError),
        (lambda counters: counters.give_back("seats", [(1, 2), (2, 3)]), ValueError),
        (lambda counters: counters.give_back("seats", [(1, 2**53)]), ValueError),
        (lambda counters: counters.put("seats", True), TypeError),
        (lambda counters: counters.put("seats", 2**53), ValueError),
        (lambda counters: counters.put("seats", 5, each=-1), ValueError),
        (lambda counters: counters.put("seats", 5, every=None), TypeError),
        (lambda counters: counters.put("seats", 5, every="day", zone=None), TypeError),
    ],
)
def test_what_can_not_be_never_reaches_a_store(ask: Callable[[Any], Any], error: type[Exception]) -> None:
    async def scenario(counters: Counters, store: Clocked) -> None:
        before, _ = await counters.put("seats", 10)
        with pytest.raises(error) as raised:
            await ask(counters)
        assert str(raised.value)
        assert await counters.read("seats") == before

    run(scenario)


def test_every_error_says_what_is_wrong() -> None:
    for error in (
        *(NoSuchHold(), NoSuchNumber(), ClaimantMissing(), ClaimantUnwanted(), KeyReused(), TooMany(5)),
        *(NoSuchCounter("seats"), StateLost("seats"), HoldExpired(Resolution("expired", 2))),
        *(HoldResolved(Resolution("released", 2)), HoldResolved(Resolution("confirmed", 2, ((1, 1),)))),
    ):
        assert re.fullmatch(r"[a-z][a-z ,;:0-9]{20,}", str(error)), repr(error)
