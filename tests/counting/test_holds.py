"""What holds, give-backs, claimants and windows are held to, on a store in memory whose clock the test moves."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from pythonricing.counting.model import (
    LEASE_RETURN_SECONDS,
    MAX_DUE,
    RESOLVED_SECONDS,
    Batch,
    Counter,
    NoSuchNumber,
    NumberLeased,
    Resolution,
    Rules,
    Seen,
    StateLost,
    StoreUnavailable,
    Verdict,
    Wish,
    Word,
)
from pythonricing.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Action, Run
    from pythonricing.settings import OnLoss

NEVER = 2**53
#: On a whole day, in seconds.
START = 1_767_225_600
HOUR, DAY = 3600, 86_400
_numbers = itertools.count()


class Sale(MemoryStore):
    """A store with one counter, and a clock."""

    def __init__(self, limit: int = 10, on_loss: OnLoss = "halt", **rules: Any) -> None:
        super().__init__(on_loss)
        self.seconds = float(START)
        self.put_(limit, **rules)

    def _now(self) -> int:
        return round(self.seconds * 1e6)

    def put_(self, limit: int | None = None, how: Any = "change", seen: Seen | None = None, **rules: Any) -> Counter:
        return asyncio.run(self.put("seats", word(seen), limit, Rules(**rules), how))[0]

    def claim_(
        self,
        *sizes: int,
        hold: str = "",
        seconds: int = 60,
        claimant: str = "",
        key: str | None = None,
        seen: Seen | None = None,
        want: int = 0,
        back: Sequence[Run] = (),
    ) -> Verdict:
        wish = Wish(hold, seconds if hold else 0, claimant) if hold or claimant else None
        keys: list[str | None] | None = [key for _ in sizes] if key else None
        wishes: list[Wish | None] | None = [wish for _ in sizes] if wish else None
        batch = Batch(
            "seats", "w", next(_numbers), 0, [*sizes], keys, seen, None, want=want, back=back, wishes=wishes
        )  # fmt: skip
        return asyncio.run(self.claim(batch))

    def read_(self, seen: Seen | None = None) -> Counter:
        return asyncio.run(self.read("seats", seen))

    def resolve_(self, id: str, action: Action, number: int | None = None, seen: Seen | None = None) -> Any:
        return asyncio.run(self.resolve("seats", word(seen), id, action, number))[0]

    def give_back_(self, *runs: Run, as_word: Word | None = None) -> int:
        return asyncio.run(self.give_back("seats", as_word or word(), runs))[0]

    def copy(self) -> dict[str, Any]:
        """The data as it is now."""
        import copy

        return copy.deepcopy(self._states)

    def fall_back(self, states: dict[str, Any]) -> None:
        self._states = states
        self._receipts.clear()
        self._words.clear()


def word(seen: Seen | None = None) -> Word:
    return Word(f"word {next(_numbers)}", NEVER, seen)


def test_held_numbers_are_taken_at_once() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    counter = sale.read_()
    assert (counter.count, counter.held, counter.issued) == (4, 4, 4)
    assert sale.claim_(7).runs == []


def test_a_hold_expires_by_the_store_s_clock_when_somebody_claims() -> None:
    sale = Sale()
    verdict = sale.claim_(4, hold="a", seconds=60)
    sale.seconds = verdict.now // 1_000_000 + 61 - 0.001
    assert sale.read_().held == 4
    sale.seconds += 0.001
    assert sale.claim_(10).runs == [(5, 14)]
    assert sale.resolve_("a", "confirm") == Resolution("expired", 4)
    counter = sale.read_()
    assert (counter.count, counter.issued, counter.given_back, counter.held) == (10, 14, 4, 0)


@pytest.mark.parametrize("look", ["read", "browse", "resolve", "put", "give back"])
def test_a_hold_expires_when_somebody_looks(look: str) -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    sale.claim_(1)
    sale.seconds += 61
    match look:
        case "read":
            counter = sale.read_()
        case "browse":
            counter = asyncio.run(sale.browse(10))[0]
        case "resolve":
            counter = asyncio.run(sale.resolve("seats", word(), "unknown", "confirm"))[1]
        case "put":
            counter = sale.put_(10)
        case _:
            counter = asyncio.run(sale.give_back("seats", word(), [(2, 2)]))[1]
    assert (counter.count, counter.expired, counter.given_back) == (1, 4, 4)


def test_what_is_confirmed_stays_and_again_gets_the_same() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    for _ in range(2):
        assert sale.resolve_("a", "confirm") == Resolution("confirmed", 4, ((1, 4),))
        sale.seconds += HOUR
    assert sale.resolve_("a", "release") == Resolution("confirmed", 4, ((1, 4),))
    assert (sale.read_().count, sale.read_().held, sale.read_().resolved) == (4, 0, 1)


def test_what_is_released_goes_back_once_and_its_numbers_are_never_given_again() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    actions: tuple[Action, ...] = ("release", "release", "confirm")
    for action in actions:
        assert sale.resolve_("a", action) == Resolution("released", 4)
    assert sale.read_().count == 0
    assert sale.claim_(10).runs == [(5, 14)]
    assert sale.claim_(1).runs == []


def test_a_hold_is_confirmed_in_part_and_the_rest_goes_back() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    assert sale.resolve_("a", "confirm", 5) == Resolution("held", 4)
    assert sale.resolve_("a", "confirm", 1) == Resolution("confirmed", 4, ((1, 1),))
    assert sale.resolve_("a", "confirm") == Resolution("confirmed", 4, ((1, 1),))
    assert (sale.read_().count, sale.read_().given_back) == (1, 3)
    assert sale.give_back_((1, 4)) == 1


def test_a_resolution_is_remembered_for_a_day_and_then_forgotten() -> None:
    sale = Sale()
    sale.claim_(1, hold="a")
    sale.claim_(1, hold="b")
    sale.resolve_("a", "confirm")
    sale.seconds += RESOLVED_SECONDS - 1
    assert sale.resolve_("a", "confirm") == Resolution("confirmed", 1, ((1, 1),))
    assert sale.resolve_("b", "confirm") == Resolution("expired", 1)
    sale.seconds += 100
    assert sale.resolve_("a", "confirm") is None
    assert sale.resolve_("b", "confirm") is None
    assert sale.read_().count == 1


def test_a_hold_of_another_counter_is_unknown() -> None:
    sale = Sale()
    asyncio.run(sale.put("cups", word(), 10))
    sale.claim_(1, hold="a")
    assert asyncio.run(sale.resolve("cups", word(), "a", "confirm"))[0] is None


def test_a_word_about_a_hold_that_comes_too_late_has_no_effect() -> None:
    sale = Sale()
    sale.claim_(1, hold="a")
    with pytest.raises(StoreUnavailable):
        asyncio.run(sale.resolve("seats", Word("w", 1), "a", "release"))
    assert sale.read_().held == 1


def test_a_key_gets_its_hold_again() -> None:
    sale = Sale()
    first = sale.claim_(2, hold="a", key="order")
    again = sale.claim_(2, hold="b", key="order").replays[0]
    assert again is not None
    assert (again.hold, again.expires) == ("a", first.now // 1_000_000 + 61)
    assert sale.resolve_("b", "confirm") is None


def test_more_holds_than_a_command_expires_are_waited_for() -> None:
    sale = Sale(MAX_DUE + 1)
    for number in range(MAX_DUE + 1):
        sale.claim_(1, hold=str(number))
    sale.seconds += 61
    verdict = sale.claim_(MAX_DUE + 1)
    assert (verdict.runs, verdict.out, verdict.expired) == ([], 1, MAX_DUE)
    assert sale.claim_(MAX_DUE + 1).runs == [(MAX_DUE + 2, 2 * MAX_DUE + 2)]


def test_numbers_are_given_back_once_however_often() -> None:
    sale = Sale()
    sale.claim_(10)
    first = word()
    assert sale.give_back_((2, 4), as_word=first) == 3
    assert sale.give_back_((2, 4), as_word=first) == 3
    assert sale.give_back_((3, 6)) == 2
    assert sale.read_().count == 5
    assert sale.claim_(5).runs == [(11, 15)]
    assert sale.claim_(1).runs == []


@pytest.mark.parametrize("run", [(11, 11), (10, 11), (900, 999), (0, 0), (0, 1), (-3, 2)])
def test_numbers_that_were_never_given_can_not_be_given_back(run: Run) -> None:
    sale = Sale(20)
    sale.claim_(10)
    with pytest.raises(NoSuchNumber):
        sale.give_back_(run)
    assert sale.read_().count == 10


def test_a_word_about_numbers_that_were_never_given_stays_without_effect() -> None:
    sale = Sale(20)
    first = word()
    with pytest.raises(NoSuchNumber):
        sale.give_back_((1, 1), as_word=first)
    sale.claim_(1)
    with pytest.raises(NoSuchNumber):
        sale.give_back_((1, 1), as_word=first)
    assert sale.read_().count == 1


def test_free_numbers_and_those_on_a_lease_are_nobody_s_to_give_back() -> None:
    sale = Sale(1000)
    sale.claim_(want=10)
    with pytest.raises(NumberLeased):
        sale.give_back_((5, 5))
    sale.claim_(back=[(4, 10)])
    with pytest.raises(NoSuchNumber):
        sale.give_back_((5, 5))
    assert sale.give_back_((3, 3)) == 1


def test_a_lease_whose_time_is_over_is_cut_by_what_is_given_back() -> None:
    sale = Sale(1000)
    sale.claim_(want=10)
    sale.seconds += LEASE_RETURN_SECONDS
    assert sale.give_back_((5, 5)) == 1
    assert sale.read_().count == 9
    sale.claim_(back=[(3, 10)])
    counter = sale.read_()
    assert (counter.count, counter.given_back) == (2, 1)
    assert sale.claim_(2, 5, 1).runs == [(3, 4), (6, 11)]


def test_a_hold_has_only_what_no_operator_gave_back() -> None:
    sale = Sale(4)
    sale.claim_(4, hold="a")
    assert sale.give_back_((2, 3)) == 2
    assert (sale.read_().count, sale.read_().held) == (2, 2)
    assert sale.claim_(2).runs == [(5, 6)]
    assert sale.resolve_("a", "confirm", 3) == Resolution("held", 2)
    for _ in range(2):
        assert sale.resolve_("a", "confirm") == Resolution("confirmed", 2, ((1, 1), (4, 4)))
    assert (sale.read_().count, sale.read_().held) == (4, 0)


def test_what_expires_is_only_what_no_operator_gave_back() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    sale.give_back_((1, 3))
    sale.seconds += 61
    assert (sale.read_().expired, sale.read_().count) == (1, 0)


def test_a_hold_of_which_an_operator_gave_everything_back_is_released() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    assert sale.give_back_((1, 2)) == 2
    before = sale.copy()
    assert sale.give_back_((3, 4)) == 2
    counter = sale.read_()
    assert (counter.count, counter.held, counter.due, counter.resolved) == (0, 0, 0, 1)
    assert sale.resolve_("a", "confirm") == Resolution("released", 0)
    sale.fall_back(before)
    with pytest.raises(StateLost):
        sale.read_(counter.seen)


@pytest.mark.parametrize("how", ["reset", "window"])
def test_a_give_back_is_about_numbers_of_the_epoch_that_was_seen(how: str) -> None:
    sale = Sale(5, every="1h")
    seen = sale.claim_(5).seen
    if how == "reset":
        sale.put_(how="restart")
    else:
        sale.seconds += HOUR
    sale.claim_(5)
    held_up = word(seen)
    for _ in range(2):
        with pytest.raises(NoSuchNumber):
            sale.give_back_((5, 5), as_word=held_up)
    assert sale.read_().count == 5


def test_no_number_passes_what_numbers_can_be_told_exactly() -> None:
    sale = Sale(NEVER - 1)
    sale.claim_(NEVER - 5)
    sale.give_back_((1, 8))
    assert sale.claim_(5).runs == []
    verdict = sale.claim_(4, 1)
    assert (verdict.runs, verdict.limit, verdict.before) == ([(NEVER - 4, NEVER - 1)], NEVER - 9, NEVER - 13)
    assert sale.claim_(1).runs == []
    assert sale.read_().limit == NEVER - 1


def test_an_operator_may_give_back_held_numbers_and_the_hold_the_others() -> None:
    sale = Sale()
    sale.claim_(4, hold="a")
    assert sale.give_back_((2, 2)) == 1
    sale.resolve_("a", "release")
    assert (sale.read_().count, sale.read_().given_back) == (0, 4)


def test_a_claimant_owns_at_most_so_many() -> None:
    sale = Sale(100, each=4)
    assert sale.claim_(3, claimant="alice").runs == [(1, 3)]
    assert sale.claim_(2, 1, claimant="alice").runs == [(4, 4)]
    assert sale.claim_(1, claimant="alice").capped == (0,)
    assert sale.claim_(4, claimant="bob").runs == [(5, 8)]


def test_the_total_refuses_too() -> None:
    sale = Sale(5, each=4)
    sale.claim_(4, claimant="alice")
    verdict = sale.claim_(2, claimant="bob")
    assert (verdict.runs, verdict.capped) == ([], ())


@pytest.mark.parametrize("way", ["release", "expiry", "operator", "part"])
def test_what_goes_back_goes_back_to_its_claimant_s_share(way: str) -> None:
    sale = Sale(100, each=4)
    sale.claim_(4, claimant="alice", hold="a")
    match way:
        case "release":
            sale.resolve_("a", "release")
        case "expiry":
            sale.seconds += 61
        case "operator":
            sale.give_back_((1, 4))
            sale.give_back_((1, 4))
            sale.resolve_("a", "release")
        case _:
            sale.resolve_("a", "confirm", 1)
            assert sale.claim_(4, claimant="alice").capped == (0,)
            assert sale.claim_(3, claimant="alice").runs == [(5, 7)]
            return
    assert sale.claim_(4, claimant="alice").runs == [(5, 8)]
    assert sale.claim_(1, claimant="alice").capped == (0,)


def test_a_claimant_who_owns_nothing_leaves_no_entry() -> None:
    sale = Sale(100, each=4)
    sale.claim_(4, claimant="alice", hold="a")
    sale.resolve_("a", "release")
    assert (sale._states["seats"].shares, sale._states["seats"].owners) == ({}, [])


def test_claims_name_a_claimant_just_where_there_are_claimants() -> None:
    sale = Sale(100, each=4)
    assert sale.claim_(1).issued == 0
    sale.put_(100, each=0)
    assert sale.claim_(1, claimant="alice").issued == 0
    assert sale.claim_(1).issued == 1


def test_a_counter_renews_at_the_end_of_its_window() -> None:
    sale = Sale(10, every="1h")
    assert sale.claim_(10).ends == (START + HOUR) * 1_000_000
    sale.seconds = START + HOUR - 0.001
    assert sale.claim_(1).runs == []
    sale.seconds = START + HOUR
    verdict = sale.claim_(10)
    assert (verdict.runs, verdict.epoch) == ([(1, 10)], (START + HOUR) * 1_000_000)
    assert sale.claim_(1).runs == []


def test_a_renewal_is_no_loss_for_whoever_saw_the_window_before() -> None:
    sale = Sale(10, every="1h")
    seen = sale.claim_(10).seen
    sale.seconds += HOUR
    assert sale.claim_(10, seen=seen).runs == [(1, 10)]
    assert sale.claim_(1, seen=seen).before == 10


def test_an_older_copy_that_renews_is_noticed_by_who_saw_the_window() -> None:
    sale = Sale(10, every="1h")
    before = sale.copy()
    sale.seconds += HOUR
    seen = sale.claim_(3).seen
    sale.fall_back(before)
    assert sale.claim_(1).runs == [(1, 1)]
    with pytest.raises(StateLost):
        sale.claim_(1, seen=seen)


@pytest.mark.parametrize("change", ["limit", "each", "every", "deletion", "resolution"])
def test_an_older_copy_that_renews_is_noticed_by_who_saw_a_change_in_the_window_before(change: str) -> None:
    sale = Sale(10, every="1h")
    sale.claim_(1, hold="a", seconds=DAY)
    before = sale.copy()
    match change:
        case "limit":
            seen = sale.put_(20).seen
        case "each":
            seen = sale.put_(10, each=4).seen
        case "every":
            seen = sale.put_(10, every="2h").seen
        case "deletion":
            seen = asyncio.run(sale.delete("seats", word()))
        case _:
            sale.resolve_("a", "confirm")
            seen = sale.read_().seen
    sale.fall_back(before)
    sale.seconds += HOUR
    sale.claim_(1)
    with pytest.raises(StateLost):
        sale.claim_(1, seen=seen)


def test_a_lost_window_that_is_over_is_no_loss() -> None:
    sale = Sale(10, every="1h")
    before = sale.copy()
    seen = sale.claim_(5).seen
    sale.fall_back(before)
    sale.seconds += HOUR
    assert sale.claim_(1, seen=seen).runs == [(1, 1)]


def test_a_store_that_lost_everything_gets_the_rules_that_were_seen() -> None:
    sale = Sale(10, on_loss="raise", every="1h", each=3)
    seen = sale.claim_(2, claimant="alice").seen
    sale.fall_back({})
    counter = sale.read_(seen)
    assert (counter.count, counter.each, counter.every, counter.ends) == (2, 3, "1h", seen.ends)
    sale.seconds += HOUR
    sale.fall_back({})
    assert sale.read_(seen).count == 0


def test_a_hold_of_a_window_that_is_over_can_be_resolved_and_counts_for_nothing() -> None:
    sale = Sale(10, every="1h")
    sale.claim_(4, hold="a", seconds=DAY)
    sale.claim_(4, hold="b", seconds=DAY)
    sale.seconds += HOUR
    sale.claim_(5)
    assert sale.resolve_("a", "confirm") == Resolution("confirmed", 4, ((1, 4),))
    assert sale.resolve_("b", "release") == Resolution("released", 4)
    counter = sale.read_()
    assert (counter.count, counter.held, counter.given_back) == (5, 0, 0)


def test_shares_and_give_backs_are_the_window_s() -> None:
    sale = Sale(10, every="1h", each=4)
    sale.claim_(4, claimant="alice")
    sale.give_back_((1, 1))
    sale.seconds += HOUR
    assert sale.claim_(4, claimant="alice").runs == [(1, 4)]
    assert sale.give_back_((1, 1)) == 1


def test_nothing_is_lent_beyond_the_end_of_a_window() -> None:
    sale = Sale(1000, every="1h")
    sale.seconds = START + HOUR - 0.1
    assert sale.claim_(want=10).lent == []
    sale.seconds -= 0.001
    assert sale.claim_(want=10).lent == [(1, 10)]


def test_a_counter_that_is_lost_does_not_renew() -> None:
    sale = Sale(10, every="1h")
    with pytest.raises(StateLost):
        sale.claim_(1, seen=Seen(NEVER, 9, 1, 10, every="1h", ends=(START + HOUR) * 1_000_000))
    sale.seconds += HOUR
    with pytest.raises(StateLost):
        sale.claim_(1)
    sale.put_(10)
    assert sale.claim_(1).runs == [(1, 1)]


def test_another_renewal_keeps_the_count() -> None:
    sale = Sale(10)
    epoch = sale.claim_(4).epoch
    counter = sale.put_(10, every="day", zone="Europe/Berlin")
    assert (counter.count, counter.epoch, counter.ends) == (4, epoch, (START + 23 * HOUR) * 1_000_000)


def test_after_a_loss_nothing_is_held_and_its_numbers_stay_taken() -> None:
    sale = Sale(10)
    sale.claim_(4, hold="a")
    sale.claim_(1, hold="b")
    sale.resolve_("b", "confirm")
    before = sale.copy()
    sale.resolve_("a", "confirm")
    seen = sale.claim_(1).seen
    sale.fall_back(before)
    with pytest.raises(StateLost):
        sale.resolve_("a", "release", seen=seen)
    sale.put_(10)
    assert sale.resolve_("a", "release") is None
    assert sale.resolve_("b", "confirm") == Resolution("confirmed", 1, ((5, 5),))
    sale.seconds += 61
    assert (sale.read_().count, sale.read_().held) == (6, 0)


def test_a_resolution_that_was_lost_is_noticed() -> None:
    sale = Sale(10)
    sale.claim_(4, hold="a")
    before = sale.copy()
    seen = asyncio.run(sale.resolve("seats", word(), "a", "release"))[1].seen
    sale.fall_back(before)
    with pytest.raises(StateLost):
        sale.claim_(1, seen=seen)


def test_a_give_back_that_was_lost_is_noticed() -> None:
    sale = Sale(10)
    sale.claim_(4)
    before = sale.copy()
    seen = asyncio.run(sale.give_back("seats", word(), [(2, 2)]))[1].seen
    sale.fall_back(before)
    with pytest.raises(StateLost):
        sale.claim_(1, seen=seen)


@pytest.mark.parametrize("how", ["reset", "deletion"])
def test_a_reset_forgets_holds(how: str) -> None:
    sale = Sale(10)
    sale.claim_(4, hold="a")
    if how == "reset":
        sale.put_(how="restart")
    else:
        asyncio.run(sale.delete("seats", word()))
        sale.put_(10)
    assert sale.resolve_("a", "confirm") is None
    sale.seconds += 61
    assert sale.read_().count == 0


def test_a_reset_keeps_the_rules() -> None:
    sale = Sale(10, each=3, every="1h")
    counter = sale.put_(how="restart")
    assert (counter.each, counter.every, counter.ends) == (3, "1h", (START + HOUR) * 1_000_000)
