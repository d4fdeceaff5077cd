"""Masters are replaced, slots move and networks split while clients claim."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from loadtests.failovers import (
    COUNTERS,
    LIMIT,
    cluster_failover,
    killed_worker,
    lagging_replica,
    migration,
    migration_and_failover,
    partition,
    sentinel_failover,
)
from loadtests.rig.sentinels import SentinelServers
from loadtests.rig.waiting import wait_until
from pythonricing.stores.redis.routes.sentinel import Sentinels

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.failovers import Harm

# What each drill promises is held against its clients' answers and its services' logs by the drill itself.


@pytest.mark.parametrize("harm", ["kill", "pause"])
def test_numbers_that_every_replica_confirmed_survive_a_failover(harm: Harm, tmp_path: Path) -> None:
    outcome = sentinel_failover(tmp_path, harm, replicas=1, confirm=1)
    assert outcome.over == 0
    assert outcome.admitted == outcome.distinct


def test_no_worker_gives_a_number_twice_in_a_failover_of_replicas_that_do_not_confirm(tmp_path: Path) -> None:
    sentinel_failover(tmp_path, "kill", replicas=1)


def test_a_promoted_replica_that_lags_behind_every_worker_closes_the_counter(tmp_path: Path) -> None:
    outcome = lagging_replica(tmp_path)
    assert outcome.closed
    assert outcome.over == 0
    assert outcome.admitted < LIMIT * len(COUNTERS)


def test_a_promoted_replica_that_lags_is_raised_if_told_so(tmp_path: Path) -> None:
    outcome = lagging_replica(tmp_path, on_loss="raise")
    assert not outcome.closed


def test_numbers_that_the_promoted_replica_had_not_confirmed_close_the_counter(tmp_path: Path) -> None:
    outcome = lagging_replica(tmp_path, confirm=1)
    assert outcome.closed
    assert outcome.over == 0


def test_numbers_that_the_replica_confirmed_survive_a_failover_in_a_cluster(tmp_path: Path) -> None:
    outcome = cluster_failover(tmp_path, "kill", confirm=1)
    assert outcome.over == 0


def test_a_slot_that_moves_during_claims_costs_none(tmp_path: Path) -> None:
    outcome = migration(tmp_path)
    assert outcome.admitted == outcome.distinct == LIMIT * len(COUNTERS)


def test_no_worker_gives_a_number_twice_where_a_slot_moves_and_its_new_master_dies(tmp_path: Path) -> None:
    migration_and_failover(tmp_path)


def test_a_killed_worker_loses_no_more_than_was_in_flight(tmp_path: Path) -> None:
    outcome = killed_worker(tmp_path)
    assert outcome.over == 0


def test_a_cut_off_master_admits_nothing_where_its_replica_has_to_confirm(tmp_path: Path) -> None:
    outcome = partition(tmp_path, confirm=1)
    assert outcome.over == 0


def test_no_worker_gives_a_number_twice_in_a_partition(tmp_path: Path) -> None:
    partition(tmp_path)


def test_a_master_that_comes_back_during_its_failover_is_not_taken_for_the_master(tmp_path: Path) -> None:
    """The Sentinel that leads the failover goes on describing the old master until every replica has a new one."""
    servers = SentinelServers(tmp_path, replicas=2, failover_timeout=6)
    try:
        servers.start()
        old, stubborn = servers.master, servers.servers[2]
        # It follows nobody new: the failover lasts until its timeout.
        stubborn.run("CONFIG", "SET", "replica-priority", 0)
        stubborn.run("CONFIG", "SET", "masterauth", "wrong")
        old.kill()
        new = servers.wait_for_failover(old)
        old.start()

        def described() -> set[tuple[int, bool]]:
            states = [sentinel.ask("SENTINEL", "MASTER", "service") for sentinel in servers.sentinels]
            masters = [dict(zip(state[::2], state[1::2], strict=True)) for state in states]
            return {(int(master["port"]), "_down" not in master["flags"]) for master in masters}

        wait_until(lambda: described() == {(old.port, True), (new.port, True)}, "the leader to see the old master")

        async def discover(ports: list[int]) -> int:
            sentinels = Sentinels([("127.0.0.1", port) for port in ports])  # type: ignore[no-untyped-call]
            try:
                return (await sentinels.discover_master("service"))[1]
            finally:
                await sentinels.aclose()

        ports = [sentinel.port for sentinel in servers.sentinels]
        found = [asyncio.run(discover(ports[first:] + ports[:first])) for first in range(len(ports))]
        assert (old.port, True) in described(), "the failover was over too soon"
        assert found == [new.port] * len(ports)
    finally:
        servers.stop()
