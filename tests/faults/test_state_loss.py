"""A store that comes back empty or older than what a worker has seen: no claim is admitted until an operator speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtests.rig.judge import count_of, judge, wait_for_leases, workers
from loadtests.rig.load import ADMIN, COUNTERS, Load, put_counters
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim

LIMIT = 1_000_000


def start(victim: Victim, service: Callable[..., Service], **settings: object) -> Service:
    return service(victim.url, "/readyz", store_timeout=10, **settings)


def claim_on_every_worker(running: Service, claims: int) -> None:
    """Claim until each worker has admitted some of these claims of each counter."""
    before = len(running.log())

    def all_have() -> bool:
        Load(running, claims).join()
        recent = [r for r in running.log()[before:] if "request_count" in r["extra"]]
        return len({(r["process"]["id"], r["extra"]["counter"]) for r in recent}) == 2 * len(COUNTERS)

    wait_until(all_have, "both workers to admit claims of each counter")


def reset(running: Service) -> None:
    """Say as an operator that every counter begins anew, and see that it does."""
    for name in COUNTERS:
        assert running.get(f"/counters/{name}", "DELETE", **ADMIN)[0] == 204
    put_counters(running, LIMIT)
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")
    history = Load(running, 90).join()
    assert history.admitted() == dict.fromkeys(COUNTERS, 30)
    # Each number once, and the store counts no more than these.
    judge(history, running, limit=LIMIT, statuses={200})


def assert_closed(running: Service) -> None:
    """No worker admits anything from any counter once its lease is over, and the service says why."""
    closed = "400 x 503 State lost"
    wait_until(lambda: Load(running, 400).join().summary() == closed, "every counter to be closed")
    assert Load(running, 400).join().summary() == closed
    assert running.get("/readyz")[0] == 503
    assert running.get("/livez")[0] == 200
    critical = [r for r in running.log() if r["level"]["name"] == "CRITICAL"]
    assert critical
    # Once a worker and counter, not once a claim.
    told = [(r["process"]["id"], r["extra"]["counter"]) for r in critical]
    assert len(told) == len(set(told))
    assert {counter for _, counter in told} == set(COUNTERS)


def lose_everything(victim: Victim) -> None:
    victim.wipe()


def lose_everything_and_start_anew(victim: Victim) -> None:
    victim.wipe()
    victim.kill()
    victim.start()


@pytest.mark.parametrize("lose", [lose_everything, lose_everything_and_start_anew])
@pytest.mark.parametrize("limit", [{}, {"limit": LIMIT}], ids=["own limit", "limit from the settings"])
def test_a_store_that_has_lost_everything_fails_closed_until_a_reset(
    lose: Callable[[Victim], None], limit: dict[str, int], victim: Victim, service: Callable[..., Service]
) -> None:
    running = start(victim, service, **limit)
    put_counters(running, LIMIT, COUNTERS[1:] if limit else COUNTERS)
    claim_on_every_worker(running, 500)
    lose(victim)
    assert_closed(running)
    reset(running)


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_store_that_loses_everything_under_load_gives_no_number_to_two(
    victim: Victim, service: Callable[..., Service]
) -> None:
    running = start(victim, service)
    put_counters(running, LIMIT)
    claim_on_every_worker(running, 500)
    load = Load(running, pace=0.01)
    load.wait_for(1_000)
    victim.wipe()
    wait_until(lambda: all(503 in load.history.of(name).statuses() for name in COUNTERS), "a claim of each to fail")
    history = load.stop()
    for name in COUNTERS:
        owned = history.of(name).owned()
        assert len(owned) == len(set(owned)), history.summary()
        assert set(history.of(name).statuses()) == {200, 503}
    assert_closed(running)


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_store_replaced_by_an_older_copy_fails_closed_until_a_reset(
    victim: Victim, service: Callable[..., Service]
) -> None:
    running = start(victim, service)
    put_counters(running, LIMIT)
    Load(running, 200).join()
    victim.backup()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")
    claim_on_every_worker(running, 500)
    victim.restore()
    assert_closed(running)
    reset(running)


def test_a_lost_counter_counts_on_when_its_limit_is_put(victim: Victim, service: Callable[..., Service]) -> None:
    running = start(victim, service)
    put_counters(running, LIMIT)
    claim_on_every_worker(running, 200)
    victim.wipe()
    assert_closed(running)
    put_counters(running, 50)
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")


def test_a_respawned_worker_does_not_hide_the_loss(victim: Victim, service: Callable[..., Service]) -> None:
    """A worker that knows nothing creates the counter anew; the one that remembers closes it."""
    running = start(victim, service, limit=LIMIT)
    put_counters(running, LIMIT, COUNTERS[1:])
    claim_on_every_worker(running, 200)
    # Workers that give back what they took ahead would notice it first.
    wait_for_leases(running, COUNTERS)
    victim.wipe()
    # As a worker that has just started does.
    newcomer = service(victim.url, "/readyz", workers=1, limit=LIMIT)
    assert max(Load(newcomer, 1_000, counters=["default"]).join().owned()) == 1_000
    status, _ = wait_until(
        lambda: (answer := running.get("/", "POST"))[0] != 200 and answer, "a worker that remembers to answer"
    )
    assert status == 503
    assert_closed(running)
    assert newcomer.get("/", "POST")[0] == 503
    assert workers(newcomer)


def test_a_deleted_counter_is_not_a_lost_one(victim: Victim, service: Callable[..., Service]) -> None:
    running = start(victim, service)
    path = "/counters/seats"
    assert running.get(path, "PUT", b'{"limit": 1000}', **ADMIN)[0] == 201
    for _ in range(20):
        assert running.get(path, "POST")[0] == 200
    assert running.get(path, "DELETE", **ADMIN)[0] == 204
    # Each worker may have numbers that it took before, for a moment.
    wait_until(lambda: {running.get(path, "POST")[0] for _ in range(20)} == {404}, "every lease to be over")
    assert running.get(path, "PUT", b'{"limit": 1000}', **ADMIN)[0] == 201
    assert {running.get(path, "POST")[1]["request_count"] for _ in range(20)} <= set(range(1, 101))
    wait_until(lambda: count_of(running, "seats") == 20, "what was taken ahead to come back")
    assert running.get("/readyz")[0] == 200


def test_a_copy_from_before_a_counter_came_back_is_noticed(victim: Victim, service: Callable[..., Service]) -> None:
    """The copy says that the counter was deleted, and that was true; but then it was created again."""
    running = start(victim, service)
    path = "/counters/seats"
    assert running.get(path, "PUT", b'{"limit": 1000}', **ADMIN)[0] == 201
    assert running.get(path, "DELETE", **ADMIN)[0] == 204
    victim.backup()
    assert running.get(path, "PUT", b'{"limit": 1000}', **ADMIN)[0] == 201
    for _ in range(40):
        assert running.get(path, "POST")[0] == 200
    victim.restore()
    statuses = {running.get(path, "POST")[0] for _ in range(40)}
    assert statuses == {503}
