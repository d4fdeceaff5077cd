"""The store's connections are closed, it is killed, paused, forgets its scripts, or comes late: nothing is lost."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.judge import judge
from loadtests.rig.load import COUNTERS, Load, put_counters, sold_out, until_sold_out
from loadtests.rig.victims import RedisVictim
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim


@contextmanager
def every(seconds: float, act: Callable[[], object]) -> Iterator[list[None]]:
    """Do something again and again, from a thread; yields a list that grows with each time."""
    stopping = threading.Event()
    times: list[None] = []

    def run() -> None:
        while not stopping.wait(seconds):
            act()
            times.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        stopping.set()
        thread.join(PATIENCE)


def test_connections_closed_every_50_ms_go_unnoticed(victim: Victim, service: Callable[..., Service]) -> None:
    limit = 4_000
    running = service(victim.url, "/readyz", store_timeout=20)
    put_counters(running, limit)
    load = Load(running)

    def drop() -> None:
        done = load.done
        victim.drop_connections()
        # A machine may be too slow to connect and claim in 50 ms.
        wait_until(lambda: load.done > done or not load.running, "a claim to be answered")

    with every(0.05, drop) as times:
        wait_until(lambda: len(times) > 20, "twenty losses of all connections")
    wait_until(lambda: sold_out(load.history), "every counter to be sold out")
    load.stop()
    history = until_sold_out(load, running, limit)
    judge(history, running, limit=limit, statuses={200, 429})


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_store_killed_three_times_during_a_run_counts_on(victim: Victim, service: Callable[..., Service]) -> None:
    claims, limit = 9_000, 2_500
    running = service(victim.url, "/readyz", store_timeout=30)
    put_counters(running, limit)
    load = Load(running, claims)
    for _ in range(3):
        load.wait_for(1_000)
        victim.kill()
        time.sleep(0.2)
        victim.start()
    assert load.running
    history = until_sold_out(load, running, limit)
    judge(history, running, limit=limit, statuses={200, 429})


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_store_paused_for_less_than_the_timeout_fails_no_claim(
    victim: Victim, service: Callable[..., Service]
) -> None:
    claims, limit = 6_000, 1_500
    running = service(victim.url, "/readyz", store_timeout=20)
    put_counters(running, limit)
    load = Load(running, claims)
    for _ in range(2):
        load.wait_for(1_000)
        victim.pause()
        time.sleep(0.5)
        victim.resume()
    history = until_sold_out(load, running, limit)
    judge(history, running, limit=limit, statuses={200, 429})


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_store_paused_past_the_timeout_fails_claims_and_admits_none_of_them(
    victim: Victim, service: Callable[..., Service]
) -> None:
    limit = 1_000_000
    running = service(victim.url, "/readyz", store_timeout=1)
    put_counters(running, limit)
    load = Load(running)
    load.wait_for(1_000)
    victim.pause()
    asked = time.monotonic()
    # With a key, because the worker may have numbers that it took before, for a moment.
    status, problem = running.get("/", "POST", idempotency_key="late")
    waited = time.monotonic() - asked
    victim_paused_for = 2.5
    time.sleep(max(0.0, victim_paused_for - waited))
    victim.resume()
    load.wait_for(1_000)
    history = load.stop()
    assert (status, problem["type"]) == (503, "urn:pythonricing:store-unavailable")
    assert 0.9 < waited < 10
    assert history.statuses()[503] > 0
    judge(history, running, limit=limit, statuses={200, 503})


def test_forgotten_scripts_go_unnoticed(victim: Victim, service: Callable[..., Service]) -> None:
    if not isinstance(victim, RedisVictim):
        pytest.skip("only Redis caches scripts")
    claims, limit = 9_000, 2_500
    running = service(victim.url, "/readyz")
    put_counters(running, limit)
    load = Load(running, claims)
    with every(0.001, lambda: victim.server.command("SCRIPT", "FLUSH")) as times:
        history = load.join()
    assert len(times) > 20
    assert history.admitted() == dict.fromkeys(COUNTERS, limit)
    judge(history, running, limit=limit, statuses={200, 429})


@pytest.mark.parametrize("limit", [None, 30], ids=["own limit", "limit from the settings"])
def test_a_service_that_starts_before_its_store_serves_when_it_comes(
    limit: int | None, idle_victim: Victim, service: Callable[..., Service]
) -> None:
    running = service(idle_victim.url, store_timeout=1, **({} if limit is None else {"limit": limit}))
    assert running.get("/livez")[0] == 200
    assert running.get("/readyz")[0] == 503
    assert running.get("/", "POST")[0] == 503
    idle_victim.start()
    came = time.monotonic()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")
    assert time.monotonic() - came < 10
    assert running.get("/", "POST") == (200, {"request_count": 1, "limit": limit or 100})
    assert running.terminate() == 0
