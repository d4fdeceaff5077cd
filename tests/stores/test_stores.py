"""Every store keeps the same promises: one suite against each of them, on every server found on this machine."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from loadtests.rig.cluster import ClusterServers
from loadtests.rig.postgres import PostgresServer, postgres_programs
from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.sentinels import SentinelServers
from loadtests.rig.waiting import wait_until
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import (
    LEASE_RETURN_SECONDS,
    Answer,
    Batch,
    Counter,
    KeyReused,
    NoSuchCounter,
    Replay,
    Rules,
    Seen,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    Verdict,
    Wish,
    Word,
)
from pythonricing.settings import MAX_COUNT
from pythonricing.stores import create_store
from pythonricing.stores.redis.routes import route_to
from tests.stores.support import word
from tests.support import Silence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from pythonricing.counting.model import How
    from pythonricing.counting.store import Store
    from pythonricing.settings import OnLoss

T = TypeVar("T")


@pytest.fixture(
    scope="module",
    params=[
        "memory",
        *redis_programs(),
        *(f"{kind} {program}" for kind in ("sentinel", "cluster") for program in redis_programs()),
        *postgres_programs(),
    ],
    ids=str,
)
def store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of each store in turn."""
    if request.param == "memory":
        yield "memory://"
        return
    server: RedisServer | PostgresServer | SentinelServers | ClusterServers
    kind, _, program = request.param.partition(" ")
    if kind == "sentinel":
        server = SentinelServers(tmp_path_factory.mktemp("store"), "--appendfsync", "no", program=program).start()
    elif kind == "cluster":
        server = ClusterServers(tmp_path_factory.mktemp("store"), "--appendfsync", "no", program=program).start()
    elif request.param in postgres_programs():
        server = PostgresServer(request.param, fsync="off").start()
    else:
        server = RedisServer(tmp_path_factory.mktemp("store"), request.param, "--appendfsync", "no").start()
    yield server.url
    server.stop()


class Opened:
    """A store, its event loop and a counter name of its own."""

    def __init__(self, url: str, on_loss: OnLoss = "halt") -> None:
        self.loop = asyncio.new_event_loop()
        self.name = f"test-{uuid.uuid4().hex}"
        # Sentinels' server has a replica, so it may confirm everything.
        self.store: Store = create_store(url, 10.0, 1 if "+sentinel" in url else 0, on_loss)
        self.run(self.store.open())
        self.run(self.connect())
        self.sequence = 0

    async def connect(self) -> None:
        for number in range(64):  # whatever shard they are on
            await self.store.ready(str(number))

    def run(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return self.loop.run_until_complete(wait())

    def batch(self, *sizes: int, keys: list[str | None] | None = None, **changes: Any) -> Batch:
        self.sequence += 1
        fields = {"worker": "w", "sequence": self.sequence, "attempt": 0, "seen": None, "create": None}
        return Batch(name=self.name, sizes=list(sizes), keys=keys, **{**fields, **changes})

    def claim(self, *sizes: int, **changes: Any) -> Verdict:
        return self.run(self.store.claim(self.batch(*sizes, **changes)))

    def count(self) -> int:
        return self.run(self.store.read(self.name)).count

    def close(self) -> None:
        self.run(self.store.close())
        self.loop.close()


@pytest.fixture
def opened(store_url: str, request: pytest.FixtureRequest) -> Iterator[Opened]:
    if store_url == "memory://" and request.node.get_closest_marker("durable"):
        pytest.skip("memory is not shared by workers")
    each = Opened(store_url)
    yield each
    each.close()


@pytest.fixture
def raising(opened: Opened, store_url: str) -> Iterator[Opened]:
    """The same counter through a store that raises what was lost; memory's is another store."""
    each = Opened(store_url, "raise")
    each.name = opened.name
    yield each
    each.close()


def put(opened: Opened, limit: int | None, most: int | None = None, how: How = "change") -> Any:
    return opened.run(opened.store.put(opened.name, word(), limit, Rules(most=most), how))


def test_a_batch_is_granted_greedily_in_arrival_order_each_claim_whole_or_not_at_all(opened: Opened) -> None:
    put(opened, 10)
    assert opened.claim(4, 3, 5, 2, 1, 1).before == 0
    assert opened.count() == 10  # 4, 3, not 5, 2, 1, not 1


def test_a_batch_sent_again_gets_its_first_answer_and_counts_nothing(opened: Opened) -> None:
    put(opened, 10)
    batch = opened.batch(1, 1, 1)
    first = opened.run(opened.store.claim(batch))
    put(opened, 5)
    assert opened.run(opened.store.claim(batch)) == first
    assert opened.count() == 3


def test_a_batch_sent_again_in_another_composition_tells_which_one_was_executed(opened: Opened) -> None:
    put(opened, 10)
    batch = opened.batch(1, 1, 1)
    opened.run(opened.store.claim(batch))
    again = opened.run(opened.store.claim(opened.batch(1, sequence=batch.sequence, attempt=1)))
    assert (again.attempt, again.before, opened.count()) == (0, 0, 3)


def test_a_batch_that_nobody_waits_for_any_more_leaves_a_receipt_and_counts_nothing(opened: Opened) -> None:
    put(opened, 10)
    assert opened.claim(sequence=7, attempt=1).attempt == 1
    assert opened.claim(1, 1, sequence=7, attempt=0).attempt == 1
    assert opened.count() == 0


def test_a_batch_whose_repeat_was_told_of_a_loss_is_not_executed_when_it_arrives(opened: Opened) -> None:
    put(opened, 10)
    now = seen(opened)
    for _ in range(2):  # the first reply was lost
        with pytest.raises(StateLost):
            opened.claim(1, sequence=7, attempt=1, seen=msgspec.structs.replace(now, issued=6))
    put(opened, 10)
    with pytest.raises(StateLost):
        opened.claim(1, 1, sequence=7, attempt=0)
    assert opened.count() == 6
    assert opened.claim(1, sequence=8).before == 6


def test_a_batch_whose_repeat_found_no_counter_is_not_executed_when_it_arrives(opened: Opened) -> None:
    for deleted in (False, True):
        if deleted:
            put(opened, 10)
            opened.run(opened.store.delete(opened.name, word()))
        opened.sequence += 1
        sequence = opened.sequence
        for _ in range(2):
            with pytest.raises(NoSuchCounter) as told:
                opened.claim(1, sequence=sequence, attempt=1)
            assert (told.value.seen is not None) == deleted
        put(opened, 10)
        with pytest.raises(NoSuchCounter):
            opened.claim(1, 1, sequence=sequence, attempt=0)
        assert opened.count() == 0
        assert opened.claim(1).before == 0
        opened.run(opened.store.delete(opened.name, word()))
        opened.name += "-other"


def test_an_older_batch_that_arrives_late_is_not_executed(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(1, sequence=8)
    with pytest.raises(StoreRejected):
        opened.claim(1, sequence=7)
    assert opened.count() == 1


def test_receipts_of_workers_are_apart(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(1, worker="a", sequence=1)
    opened.claim(1, worker="b", sequence=1)
    assert opened.count() == 2


def test_a_key_used_again_gets_the_first_answer_admitted_or_refused(opened: Opened) -> None:
    put(opened, 3)
    assert opened.claim(2, 2, keys=["a", "b"]).replays == [None, None]
    put(opened, 100)
    verdict = opened.claim(2, 1, 2, keys=["a", None, "b"])
    assert verdict.replays == [Replay(2, 2, 3, True), Replay(2, 2, 3, False)]
    assert opened.count() == 3


def test_a_key_twice_in_one_batch_counts_once(opened: Opened) -> None:
    put(opened, 10)
    assert opened.claim(2, 2, 2, keys=["a", "a", "a"]).replays == [None, *[Replay(2, 2, 10, True)] * 2]
    assert opened.count() == 2


def test_scattered_numbers_are_told_again(opened: Opened) -> None:
    put(opened, 1000)
    assert opened.claim(want=15).lent == [(1, 15)]
    assert opened.claim(5, worker="v").runs == [(16, 20)]
    opened.claim(back=[(8, 11), (1, 4)])
    put(opened, 22)
    scattered = [(1, 4), (8, 11), (21, 22)]
    assert opened.claim(10, keys=["a"]).runs == scattered
    assert opened.claim(10, keys=["a"]).replays == [Replay(10, 22, 22, True, tuple(scattered))]
    assert opened.count() == 22


def test_a_refusal_is_not_remembered_while_a_lease_may_come_back(opened: Opened) -> None:
    while True:
        put(opened, 1000, how="restart")
        opened.claim(want=15)
        put(opened, 15)
        verdict = opened.claim(1, keys=["a"], worker="v")
        assert (verdict.before, verdict.runs) == (15, [])
        if verdict.out:  # within 0.3 s
            break
    assert verdict.out == 15
    opened.claim(back=[(3, 4)], held=[(5, 15)])
    assert opened.claim(1, keys=["a"], worker="v").runs == [(3, 3)]


def test_a_lease_is_not_waited_for_longer_than_it_may_take_and_comes_back_all_the_same(opened: Opened) -> None:
    put(opened, 1000)
    opened.claim(want=15)
    put(opened, 20)
    time.sleep(LEASE_RETURN_SECONDS)
    assert opened.claim(6, keys=["a"], worker="v").out == 0
    counter = opened.run(opened.store.read(opened.name))
    assert (counter.count, counter.leased) == (15, 0)
    # What was refused for good stays so.
    verdict = opened.claim(6, 6, keys=["a", "b"], back=[(1, 15)])
    assert (verdict.replays, verdict.runs) == ([Replay(6, 15, 20, False), None], [(1, 6)])
    counter = opened.run(opened.store.read(opened.name))
    assert (counter.count, counter.issued, counter.moved) == (6, 15, 21)


def test_keys_are_forgotten_with_their_counter(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(1, keys=["a"])
    put(opened, 10, how="restart")
    assert opened.claim(1, keys=["a"]).replays == [None]
    opened.run(opened.store.delete(opened.name, word()))
    put(opened, 10)
    assert opened.claim(1, keys=["a"]).replays == [None]


def test_keys_of_counters_are_apart(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(1, keys=["a"])
    opened.name += "-other"
    put(opened, 10)
    assert opened.claim(1, keys=["a"]).replays == [None]


def test_numbers_stay_exact_up_to_the_largest_limit(opened: Opened) -> None:
    put(opened, MAX_COUNT)
    opened.claim(MAX_COUNT - 2, keys=["a"])
    verdict = opened.claim(MAX_COUNT, 1, 2, keys=[None, None, "b"])
    assert (verdict.before, verdict.limit) == (MAX_COUNT - 2, MAX_COUNT)
    assert opened.count() == MAX_COUNT - 1
    replays = opened.claim(MAX_COUNT - 2, 2, keys=["a", "b"]).replays
    assert replays == [
        Replay(MAX_COUNT - 2, MAX_COUNT - 2, MAX_COUNT, True),
        Replay(2, MAX_COUNT - 1, MAX_COUNT, False),
    ]


def test_a_missing_counter_is_created_only_where_a_limit_is_given(opened: Opened) -> None:
    for attempt in (opened.store.read(opened.name), opened.store.claim(opened.batch(1))):
        with pytest.raises(NoSuchCounter):
            opened.run(attempt)
    with pytest.raises(NoSuchCounter):
        opened.run(opened.store.put(opened.name, word(), None, how="restart"))
    with pytest.raises(NoSuchCounter):
        opened.run(opened.store.delete(opened.name, word()))
    assert opened.claim(1, create=7).limit == 7
    assert opened.claim(1, create=9).limit == 7


def test_put_creates_then_changes_the_limit_and_keeps_the_count(opened: Opened) -> None:
    counter, created = put(opened, 10)
    assert (counter.count, counter.limit, created) == (0, 10, True)
    opened.claim(4)
    changed, created = put(opened, 2)
    assert (changed.count, changed.limit, changed.epoch, created) == (4, 2, counter.epoch, False)


def test_a_limit_below_the_count_refuses_and_takes_nothing_back(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(8)
    put(opened, 3)
    assert opened.claim(1, 1).before == 8
    assert opened.count() == 8


def test_restarting_counts_from_zero_in_a_later_epoch(opened: Opened) -> None:
    before, _ = put(opened, 10)
    opened.claim(4)
    after, created = opened.run(opened.store.put(opened.name, word(), None, how="restart"))
    assert (after.count, after.limit, created) == (0, 10, False)
    assert after.epoch > before.epoch


def test_configuring_sets_the_limit_and_keeps_the_count(opened: Opened) -> None:
    opened.run(opened.store.put(opened.name, word(), 5, how="configure"))
    opened.claim(2)
    opened.run(opened.store.put(opened.name, word(), 9, how="configure"))
    counter = opened.run(opened.store.read(opened.name))
    assert (counter.count, counter.limit) == (2, 9)


def seen(opened: Opened) -> Seen:
    counter = opened.run(opened.store.read(opened.name))
    return Seen(counter.epoch, counter.revision, counter.count, counter.limit, counter.most)


def test_a_deleted_counter_is_no_loss(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    known = seen(opened)
    opened.run(opened.store.delete(opened.name, word()))
    with pytest.raises(NoSuchCounter):
        opened.claim(1, seen=known)
    assert opened.claim(1, seen=known, create=10).before == 0
    assert opened.claim(1, seen=known).before == 1


def test_a_counter_that_an_operator_started_over_is_no_loss(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    known = seen(opened)
    put(opened, 10, how="restart")
    assert opened.claim(1, seen=known).before == 0


def test_a_counter_that_is_gone_is_lost_for_every_worker_until_an_operator_sets_it(opened: Opened) -> None:
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(1_700_000_000_000_000, 1, 4, 10), create=10)
    for attempt in (
        opened.store.claim(opened.batch(1, create=10)),
        opened.store.read(opened.name),
        opened.store.put(opened.name, word(), 10, how="configure"),
    ):
        with pytest.raises(StateLost):
            opened.run(attempt)
    counter, _ = opened.run(opened.store.put(opened.name, word(), None, how="restart"))
    assert (counter.count, counter.limit) == (0, 10)
    assert opened.claim(1, seen=Seen(1_700_000_000_000_000, 1, 4, 10)).before == 0


def test_an_older_count_of_the_same_epoch_is_a_loss_and_nothing_is_counted(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    now = seen(opened)
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(now.epoch, now.revision, 5, 10))
    counter, created = put(opened, 10)
    assert (counter.count, created) == (5, False)  # the highest count that is known: nothing is handed out again
    assert (counter.epoch, counter.revision) == (now.epoch, now.revision + 1)
    assert opened.claim(1, seen=Seen(now.epoch, now.revision, 5, 10)).before == 5


def test_an_earlier_epoch_is_a_loss_whoever_made_it(opened: Opened) -> None:
    put(opened, 10)
    now = seen(opened)
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(now.epoch + 1, 1, 0, 10))


def test_a_counter_that_came_back_by_itself_with_a_lower_count_is_a_loss(opened: Opened) -> None:
    opened.claim(2, create=10)
    now = seen(opened)
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(now.epoch - 1, 0, 3, 10))


def test_reading_notices_a_loss_too(opened: Opened) -> None:
    with pytest.raises(StateLost):
        opened.run(opened.store.read(opened.name, Seen(1_700_000_000_000_000, 1, 4, 10)))


def listed(opened: Opened) -> dict[str, Any]:
    return {counter.name: counter for counter in opened.run(opened.store.browse(1000))}


def test_browsing_shows_what_is_there(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    assert listed(opened)[opened.name] == opened.run(opened.store.read(opened.name))
    opened.run(opened.store.delete(opened.name, word()))
    assert opened.name not in listed(opened)
    put(opened, 10)
    assert opened.name in listed(opened)


def test_browsing_is_by_name_and_bounded(opened: Opened) -> None:
    for name in ("b", "a", "c"):
        opened.run(opened.store.put(f"!{name}", word(), 1))
    assert [counter.name for counter in opened.run(opened.store.browse(2))] == ["!a", "!b"]
    assert [counter.name for counter in opened.run(opened.store.browse(1, "!a"))] == ["!b"]
    assert [counter.name for counter in opened.run(opened.store.browse(2, "!"))] == ["!a", "!b"]
    # A page is full although one of its counters has been deleted.
    opened.run(opened.store.delete("!b", word()))
    assert [counter.name for counter in opened.run(opened.store.browse(2))] == ["!a", "!c"]
    for name in ("a", "c"):
        opened.run(opened.store.delete(f"!{name}", word()))
    assert not opened.run(opened.store.browse(1000, "~"))


def test_browsing_shows_lost_counters_as_lost(opened: Opened) -> None:
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(1_700_000_000_000_000, 1, 4, 10), create=10)
    assert listed(opened)[opened.name].lost
    put(opened, 10, how="restart")
    assert not listed(opened)[opened.name].lost


def test_a_counter_that_is_gone_is_restored_as_it_was_seen(raising: Opened) -> None:
    known = Seen(1_700_000_000_000_000, 1, 4, 10)
    verdict = raising.claim(1, 2, seen=known, create=7)
    assert (verdict.epoch, verdict.before, verdict.limit) == (known.epoch, 4, 10)
    assert raising.count() == 7


def test_restoring_a_counter_is_told_once(raising: Opened) -> None:
    known = Seen(1_700_000_000_000_000, 1, 4, 10)
    assert raising.claim(1, seen=known, keys=["a"]).raised == 0
    verdict = raising.claim(1, seen=known, keys=["a"])
    assert (verdict.raised, verdict.replays) == (None, [Replay(1, 5, 10, True)])


def test_an_older_count_is_raised_to_the_one_that_was_seen(raising: Opened) -> None:
    put(raising, 10)
    raising.claim(4)
    put(raising, 20)
    now = seen(raising)
    counter = raising.run(raising.store.read(raising.name, Seen(now.epoch, now.revision, 7, 10)))
    assert (counter.count, counter.limit, counter.epoch, counter.raised) == (7, 20, now.epoch, 4)
    verdict = raising.claim(1, 1, seen=Seen(now.epoch, now.revision, 9, 10), keys=["a", None])
    assert (verdict.before, verdict.raised, verdict.replays) == (9, 7, [None])
    assert raising.count() == 11
    assert raising.claim(1, seen=Seen(now.epoch, now.revision, 9, 10)).raised is None


def test_an_earlier_epoch_becomes_the_one_that_was_seen(raising: Opened) -> None:
    put(raising, 10)
    raising.claim(4)
    epoch = seen(raising).epoch + 1
    verdict = raising.claim(1, seen=Seen(epoch, 2, 2, 5))
    assert (verdict.epoch, verdict.before, verdict.limit, verdict.raised) == (epoch, 2, 5, 4)


def test_an_epoch_that_began_by_itself_is_raised_to_what_was_given_before(raising: Opened) -> None:
    raising.claim(2, create=10)
    now = seen(raising)
    assert raising.claim(1, seen=Seen(now.epoch - 1, 0, 2, 10)).raised == 2
    verdict = raising.claim(1, seen=Seen(now.epoch - 1, 0, 6, 10))
    assert (verdict.epoch, verdict.before, verdict.raised) == (now.epoch, 6, 3)


def test_what_an_operator_did_is_not_raised(raising: Opened) -> None:
    put(raising, 10)
    raising.claim(4)
    known = seen(raising)
    put(raising, 10, how="restart")
    assert (raising.claim(1, seen=known).before, raising.count()) == (0, 1)
    raising.run(raising.store.delete(raising.name, word()))
    with pytest.raises(NoSuchCounter):
        raising.claim(1, seen=known)
    assert raising.claim(1, seen=known, create=10).before == 0


@pytest.mark.durable
def test_a_counter_marked_as_lost_counts_on_from_what_is_known_once_raising_is_allowed(
    opened: Opened, raising: Opened
) -> None:
    put(opened, 10)
    opened.claim(4)
    epoch = seen(opened).epoch
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(epoch, 1, 6, 10))
    verdict = raising.claim(1, worker="v", seen=Seen(epoch, 1, 5, 10))
    assert (verdict.epoch, verdict.before, verdict.raised) == (epoch, 6, 6)
    assert opened.count() == 7


@pytest.mark.durable
def test_a_lost_counter_is_raised_by_a_worker_that_has_seen_nothing_too(opened: Opened, raising: Opened) -> None:
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(1_700_000_000_000_000, 1, 4, 10))
    assert raising.claim(1, worker="v").before == 4


def test_a_batch_that_raised_the_count_gets_its_first_answer_again(raising: Opened) -> None:
    put(raising, 10)
    batch = raising.batch(1, keys=["a"], seen=Seen(seen(raising).epoch, 1, 3, 10))
    first = raising.run(raising.store.claim(batch))
    again = raising.run(raising.store.claim(batch))
    assert (again.before, again.replays, raising.count()) == (first.before, first.replays, 4)


def test_a_word_sent_again_is_executed_once_and_gets_its_first_answer(opened: Opened) -> None:
    first, again = word(), word()
    reply = opened.run(opened.store.put(opened.name, first, 10))
    opened.claim(4)
    put(opened, 20)
    assert opened.run(opened.store.put(opened.name, first, 10)) == reply
    deletion = opened.run(opened.store.delete(opened.name, again))
    put(opened, 30)
    assert opened.run(opened.store.delete(opened.name, again)) == deletion
    assert opened.run(opened.store.read(opened.name)).limit == 30


def test_a_word_that_comes_too_late_has_no_effect(opened: Opened) -> None:
    put(opened, 10)
    late = Word("late", opened.run(opened.store.clock(opened.name)) - 1)
    for act in (
        opened.store.put(opened.name, late, 20),
        opened.store.put(opened.name, late, 20, how="restart"),
        opened.store.put(opened.name, late, 20, how="configure"),
        opened.store.delete(opened.name, late),
    ):
        with pytest.raises(StoreUnavailable, match="too late"):
            opened.run(act)
    assert opened.run(opened.store.read(opened.name)).limit == 10


def test_a_word_that_was_in_time_is_repeated_even_late(opened: Opened) -> None:
    reply = opened.run(opened.store.put(opened.name, Word("w", 2**53), 10))
    assert opened.run(opened.store.put(opened.name, Word("w", 1), 10)) == reply


def test_the_clock_is_that_of_epochs(opened: Opened) -> None:
    before = opened.run(opened.store.clock(opened.name))
    epoch = put(opened, 10)[0].epoch
    assert before <= epoch <= opened.run(opened.store.clock(opened.name))


def test_every_change_but_a_claim_makes_the_revision_greater(opened: Opened) -> None:
    revisions = [put(opened, 10)[0].revision]
    assert opened.claim(4).revision == revisions[0]
    revisions += [
        put(opened, 20)[0].revision,
        put(opened, 20, most=2)[0].revision,
        put(opened, None, None, "restart")[0].revision,
    ]
    revisions += [opened.run(opened.store.delete(opened.name, word())).revision, put(opened, 10)[0].revision]
    assert revisions == [1, 2, 3, 4, 5, 6]
    assert put(opened, 10)[0].revision == 6


def test_a_claim_above_the_largest_takes_nothing_and_uses_no_key(opened: Opened) -> None:
    put(opened, 10, most=2)
    verdict = opened.claim(3, 2, 3, keys=["a", "b", None])
    assert (verdict.most, verdict.replays, opened.count()) == (2, [None, None], 2)
    put(opened, 10, most=0)
    assert opened.claim(3, keys=["a"]).replays == [None]
    assert opened.count() == 5


def test_no_number_above_a_limit_that_came_down_is_given(opened: Opened) -> None:
    put(opened, 1000)
    assert list(opened.claim(worker="v", want=8).lent) == [(1, 8)]
    opened.claim(92)
    assert list(opened.claim(worker="w", want=8).lent) == [(101, 108)]
    opened.claim(worker="v", back=[(2, 2), (4, 4)], held=[(1, 1), (3, 3), (5, 8)])
    opened.claim(worker="w", back=[(101, 108)])
    assert put(opened, 100)[0].count == 98
    verdict = opened.claim(2)
    assert list(verdict.runs) == [(2, 2), (4, 4)]
    assert list(opened.claim(1).runs) == []
    put(opened, 108)
    assert list(opened.claim(2).runs) == [(101, 102)]


def test_a_limit_of_an_older_copy_is_a_loss(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    now = seen(opened)
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(now.epoch, now.revision + 1, 4, 4))
    assert put(opened, None)[0].limit == 4  # that of the greatest revision


def test_a_deletion_that_an_older_copy_lacks_is_a_loss(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    now = seen(opened)
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(now.epoch, now.revision + 1, 0, 0, deleted=True))
    assert put(opened, 10) == (opened.run(opened.store.read(opened.name)), True)
    assert opened.claim(1).before == 0


def test_a_deletion_takes_account_of_nothing_after_it(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    before = seen(opened)
    opened.run(opened.store.delete(opened.name, word()))
    # An older copy, which lacks that the counter came back: who puts it now knows of its deletion only.
    put(opened, 10)
    assert opened.claim(1, seen=before).before == 0
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(before.epoch + 1, before.revision + 2, 3, 10))
    assert put(opened, 10)[0].count == 3
    assert opened.claim(1, seen=before).before == 3


def test_a_counter_that_was_put_while_its_deletion_was_lost_counts_on(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    now = seen(opened)
    deleted = msgspec.structs.replace(now, revision=now.revision + 1, limit=0, deleted=True)
    kept = msgspec.structs.replace(now, revision=now.revision + 1, issued=6)
    for told in (deleted, kept, deleted):
        with pytest.raises(StateLost):
            opened.claim(1, seen=told)
    assert put(opened, 10)[0].count == 6


def test_a_deletion_of_an_older_copy_beside_a_put_of_the_same_revision_is_a_loss(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    now = seen(opened)
    opened.run(opened.store.delete(opened.name, word()))
    with pytest.raises(StateLost):
        opened.claim(1, seen=msgspec.structs.replace(now, revision=now.revision + 1, issued=6))
    assert put(opened, 10)[0].count == 6


def test_a_put_that_is_the_first_to_notice_a_loss_ends_none(opened: Opened) -> None:
    known = Seen(1_700_000_000_000_000, 1, 80, 100)
    with pytest.raises(StateLost):
        opened.run(opened.store.put(opened.name, word(known), 100))
    counter, created = opened.run(opened.store.put(opened.name, word(known), 100))
    assert (counter.count, counter.epoch, created) == (80, known.epoch, False)


def test_a_put_that_was_the_first_to_notice_a_loss_ends_none_when_it_is_sent_again(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(4)
    now = seen(opened)
    first = Word("first", 2**53, msgspec.structs.replace(now, issued=6))
    for _ in range(2):  # the first reply was lost
        with pytest.raises(StateLost):
            opened.run(opened.store.put(opened.name, first, 10))
    counter, _ = put(opened, 10)
    assert (counter.count, counter.epoch) == (6, now.epoch)


def test_what_is_lost_is_the_highest_that_any_worker_tells(opened: Opened) -> None:
    put(opened, 100)
    now = seen(opened)
    for count in (16, 36, 20):
        with pytest.raises(StateLost):
            opened.claim(1, seen=Seen(now.epoch, now.revision, count, 100))
    assert put(opened, 100)[0].count == 36


def test_what_is_lost_is_the_highest_that_any_worker_tells_of_whatever_epoch(opened: Opened) -> None:
    # A worker that knew nothing began an epoch after a loss, and that one was lost too.
    for known in (Seen(1_700_000_000_000_000, 0, 7, 100), Seen(1_700_000_000_000_001, 0, 2, 100)):
        with pytest.raises(StateLost):
            opened.claim(1, seen=known)
    assert put(opened, 100)[0].issued == 7


def test_an_older_epoch_that_comes_back_over_one_begun_in_ignorance_keeps_its_count(opened: Opened) -> None:
    # Everything is lost, a worker that knew nothing begins an epoch, and a copy of the one before is restored over it.
    begun = opened.claim(7, create=100).epoch + 1
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(begun, 0, 2, 100))
    assert put(opened, 100)[0].issued == 7


def test_an_older_epoch_that_comes_back_over_a_reset_does_not(opened: Opened) -> None:
    reset = opened.claim(7, create=100).epoch + 1
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(reset, 1, 2, 100))
    assert put(opened, 100)[0].issued == 2


def test_a_deletion_takes_no_account_of_what_was_said_after_it(opened: Opened) -> None:
    epoch = put(opened, 10)[0].epoch
    deletion = opened.run(opened.store.delete(opened.name, word()))
    put(opened, 10)
    # The store had lost the counter when it was deleted; one that remembered it went on, and that was lost too.
    went_on = Seen(epoch, deletion.revision + 1, 7, 10)
    with pytest.raises(StateLost):
        opened.claim(1, seen=went_on)
    assert put(opened, 10)[0].issued == 7


def test_a_resolution_that_an_older_copy_lacks_is_a_loss_although_as_much_has_moved(opened: Opened) -> None:
    # What was confirmed before the loss has expired since, in the copy.
    put(opened, 10)
    opened.claim(4)
    with pytest.raises(StateLost):
        opened.claim(1, seen=msgspec.structs.replace(seen(opened), resolved=1))


def renew(opened: Opened, **rules: Any) -> tuple[Counter, Counter]:
    """A counter of which 4 numbers were claimed in the window before, as it was then and as it is now."""
    opened.run(opened.store.put(opened.name, word(), 10, Rules(every="1s", **rules)))
    opened.claim(4)
    before = opened.run(opened.store.read(opened.name))
    wait_until(lambda: opened.count() == 0, "the window to be over")
    return before, opened.run(opened.store.read(opened.name))


def test_a_counter_that_renews_no_more_knows_when_it_began(opened: Opened) -> None:
    before, _ = renew(opened)
    opened.run(opened.store.put(opened.name, word(), 10, Rules(every="", zone="")))
    assert opened.claim(1, seen=before.seen).before == 0


def test_what_a_worker_of_an_earlier_window_tells_ends_none(raising: Opened) -> None:
    before, _ = renew(raising)
    told = msgspec.structs.replace(before.seen, revision=before.revision + 1, limit=20)
    counter = raising.run(raising.store.read(raising.name, told))
    # Else it would have begun again, a microsecond later.
    assert (counter.limit, counter.epoch % 1_000_000) == (20, 0)


def test_a_reset_forgets_the_shares_of_a_counter_that_has_no_claimants_for_a_while(opened: Opened) -> None:
    wishes = [Wish(claimant="alice")]
    steps: tuple[tuple[int, How], ...] = ((4, "change"), (0, "change"), (0, "restart"), (4, "change"))
    for each, how in steps:
        opened.run(opened.store.put(opened.name, word(), 10, Rules(each=each), how))
        if each:
            assert list(opened.claim(4, wishes=wishes).runs) == [(1, 4)]


def test_setting_a_lost_counter_keeps_its_keys(opened: Opened) -> None:
    put(opened, 10)
    opened.claim(1, keys=["a"])
    now = seen(opened)
    with pytest.raises(StateLost):
        opened.claim(1, seen=Seen(now.epoch, now.revision, 5, 10))
    put(opened, 10)
    assert opened.claim(1, keys=["a"]).replays == [Replay(1, 1, 10, True)]


def test_a_counter_that_is_not_there_tells_its_deletion(opened: Opened) -> None:
    put(opened, 10)
    deletion = opened.run(opened.store.delete(opened.name, word()))
    for act in (
        opened.store.claim(opened.batch(1)),
        opened.store.read(opened.name),
        opened.store.put(opened.name, word(), None),
        opened.store.put(opened.name, word(), None, how="restart"),
        opened.store.delete(opened.name, word()),
    ):
        with pytest.raises(NoSuchCounter) as raised:
            opened.run(act)
        assert raised.value.seen == deletion


class CounterModel(RuleBasedStateMachine):
    """Two workers and an operator against a counter of two integers."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.opened = Opened(self.url)
        self.name = self.opened.name
        self.workers = [
            Counters(self.opened.store, Silence(), timeout=30, halt_cache=0),
            Counters(self.opened.store, Silence(), timeout=30, halt_cache=0),
        ]
        for worker in self.workers:
            self.opened.run(worker.open())
        self.model: tuple[int, int] | None = None  # count and limit
        self.keys: dict[str, tuple[int, Answer]] = {}

    def teardown(self) -> None:
        self.opened.close()

    def claims(self, *calls: tuple[int, int, str | None]) -> list[Any]:
        async def together() -> list[Any]:
            tasks = [self.workers[worker].claim(self.name, size, key) for worker, size, key in calls]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self.opened.run(together())

    @rule(worker=st.integers(0, 1), size=st.integers(1, 12))
    def claim(self, worker: int, size: int) -> None:
        [answer] = self.claims((worker, size, None))
        if self.model is None:
            assert isinstance(answer, NoSuchCounter)
            return
        count, limit = self.model
        admitted = count + size <= limit
        assert answer == Answer(admitted, count + size if admitted else count, limit)
        self.model = (answer.request_count, limit)

    @rule(worker=st.integers(0, 1), size=st.integers(1, 3), key=st.sampled_from("abc"))
    def claim_with_key(self, worker: int, size: int, key: str) -> None:
        [answer] = self.claims((worker, size, key))
        if self.model is None:
            assert isinstance(answer, NoSuchCounter)
        elif key in self.keys and self.keys[key][0] != size:
            assert isinstance(answer, KeyReused)
        elif key in self.keys:
            # When to come again depends on what has happened since.
            assert msgspec.structs.replace(answer, retry_after=self.keys[key][1].retry_after) == self.keys[key][1]
        else:
            count, limit = self.model
            admitted = count + size <= limit
            assert answer == Answer(admitted, count + size if admitted else count, limit)
            self.model = (answer.request_count, limit)
            self.keys[key] = (size, answer)

    @precondition(lambda self: self.model is not None)
    @rule(calls=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.none()), min_size=1, max_size=20))
    def claim_together(self, calls: list[tuple[int, int, None]]) -> None:
        assert self.model is not None
        count, limit = self.model
        answers = self.claims(*calls)
        owned = [
            number
            for (_, size, _), answer in zip(calls, answers, strict=True)
            if answer.admitted
            for number in range(answer.request_count - size + 1, answer.request_count + 1)
        ]
        assert sorted(owned) == list(range(count + 1, count + len(owned) + 1))
        self.model = (count + len(owned), limit)
        for (_, size, _), answer in zip(calls, answers, strict=True):
            assert answer.admitted or self.model[0] + size > limit

    @rule(limit=st.integers(0, 60))
    def put(self, limit: int) -> None:
        counter, created = self.opened.run(self.workers[0].put(self.name, limit))
        assert created == (self.model is None)
        if created:
            self.keys.clear()
        self.model = (self.model[0] if self.model else 0, limit)
        assert (counter.count, counter.limit) == self.model

    @rule(worker=st.integers(0, 1))
    def delete(self, worker: int) -> None:
        if self.model is None:
            with pytest.raises(NoSuchCounter):
                self.opened.run(self.workers[worker].delete(self.name))
        else:
            self.opened.run(self.workers[worker].delete(self.name))
        self.model = None
        self.keys.clear()

    @invariant()
    def the_store_agrees(self) -> None:
        for worker in self.workers:
            if self.model is None:
                with pytest.raises(NoSuchCounter):
                    self.opened.run(worker.read(self.name))
            else:
                counter = self.opened.run(worker.read(self.name))
                assert (counter.count, counter.limit) == self.model


def test_two_workers_and_an_operator_behave_as_one_counter(store_url: str) -> None:
    machine = type("Machine", (CounterModel,), {"url": store_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


async def fall_back(url: str, name: str, count: int) -> None:
    """Give a counter another count, behind the store's back."""
    if url.startswith("postgresql"):
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE pythonricing.counter SET issued = $2 WHERE name = $1", name, count)
        await connection.close()
        return
    route = route_to(url, 10.0)
    await route.open()
    await route.ready(name)
    assert await route.pipeline(name).call("HSET", f"pythonricing:{{{name}}}", "count", count) == 0
    await route.close()


class LossModel(RuleBasedStateMachine):
    """Two workers on a store that falls back to older counts, and raises them: counts of integers agree."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.opened = Opened(self.url, "raise")
        put(self.opened, 1000)
        self.epoch = seen(self.opened).epoch
        self.count = 0
        self.seen = [0, 0]

    def teardown(self) -> None:
        self.opened.close()

    @rule(worker=st.integers(0, 1), size=st.integers(1, 20))
    def claim(self, worker: int, size: int) -> None:
        known = Seen(self.epoch, 1, self.seen[worker], 1000)
        verdict = self.opened.claim(size, worker=str(worker), seen=known)
        raised = self.count if self.seen[worker] > self.count else None
        self.count = max(self.count, self.seen[worker])
        assert (verdict.before, verdict.raised) == (self.count, raised)
        self.count += size if self.count + size <= 1000 else 0
        self.seen[worker] = self.count

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def fall_back(self, data: st.DataObject) -> None:
        self.count = data.draw(st.integers(0, self.count - 1))
        self.opened.run(fall_back(self.url, self.opened.name, self.count))


def test_a_store_that_falls_back_goes_on_from_what_each_worker_has_seen(store_url: str) -> None:
    if store_url == "memory://":
        pytest.skip("memory doesn't fall back")
    machine = type("Machine", (LossModel,), {"url": store_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
