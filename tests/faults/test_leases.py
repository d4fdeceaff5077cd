"""Numbers that workers take ahead, and what pauses, kills, losses, operators and cuts do to them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.judge import count_of, judge, tail, wait_for_leases, workers
from loadtests.rig.load import ADMIN, Load, put_counters, sold_out
from loadtests.rig.victims import RedisVictim, kill_a_worker
from loadtests.rig.waiting import wait_until
from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import LEASE_RETURN_SECONDS, LEASE_SECONDS
from pythonricing.stores import create_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim

COUNTERS = ("default", "seats")
FAR = 1_000_000


def put(running: Service, name: str, limit: int) -> int:
    return running.get(f"/counters/{name}", "PUT", json.dumps({"limit": limit}).encode(), **ADMIN)[0]


def claim(running: Service, name: str, n: int = 1) -> tuple[int, Any]:
    return running.get(f"/counters/{name}?n={n}", "POST", b"")


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """A process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_worker_paused_for_longer_than_its_lease_gives_the_rest_back(
    victim: Victim, service: Callable[..., Service]
) -> None:
    limit = 3_000
    running = service(victim.url, "/readyz")
    put_counters(running, limit, COUNTERS)
    load = Load(running, counters=COUNTERS, pace=0.01)
    load.wait_for(1_000)
    with paused(min(workers(running))):
        # Nobody else gets what it holds; it is waited for, and then the others are told that nothing is left.
        wait_until(lambda: sold_out(load.history, COUNTERS), "the others to be told so")
    history = load.stop()
    wait_for_leases(running, COUNTERS)
    history.calls += Load(running, 400, counters=COUNTERS).join().calls
    judge(history, running, limit=limit, statuses={200, 429, 503, 0}, killed=True)
    for name in COUNTERS:
        # A server that was paused may find its claims' time over, or a connection's, which it closes without an answer.
        unanswered = sum(history.of(name).statuses().get(status, 0) for status in (0, 503))
        assert limit - unanswered <= len(history.of(name).owned()) <= count_of(running, name) == limit


def test_what_a_killed_worker_held_is_spent_and_nobody_waits_for_it_for_long(
    victim: Victim, service: Callable[..., Service]
) -> None:
    limit = 3_000
    running = service(victim.url, "/readyz", workers=4)
    put_counters(running, limit, COUNTERS)
    load = Load(running, counters=COUNTERS, pace=0.01)
    load.wait_for(2_000)
    kill_a_worker(running)
    wait_until(lambda: sold_out(load.history, COUNTERS), "the others to be told that nothing is left")
    judge(load.stop(), running, limit=limit, statuses={200, 429, 0}, killed=True)


@pytest.mark.parametrize("older", [False, True], ids=["empty", "older"])
def test_a_store_that_loses_its_data_while_leases_are_out(
    older: bool, victim: Victim, service: Callable[..., Service]
) -> None:
    running = service(victim.url, "/readyz", store_timeout=20)
    put_counters(running, FAR, COUNTERS)
    load = Load(running, counters=COUNTERS, pace=0.01)
    load.wait_for(500)
    if older:
        victim.backup()
    before = len(running.log())

    def claimed() -> bool:
        recent = [r for r in running.log()[before:] if "request_count" in r["extra"]]
        return len({(r["process"]["id"], r["extra"]["counter"]) for r in recent}) == 2 * len(COUNTERS)

    wait_until(claimed, "every worker to have seen more")
    load.wait_for(500)
    victim.restore() if older else victim.wipe()

    def told() -> bool:
        critical = [r for r in running.log() if r["level"]["name"] == "CRITICAL"]
        return len({(r["process"]["id"], r["extra"]["counter"]) for r in critical}) == 2 * len(COUNTERS)

    wait_until(told, "every worker to notice")
    for name in COUNTERS:
        wait_until(lambda name=name: put(running, name, FAR) == 200, "the loss to be ended")  # type: ignore[misc]
    served = load.history.statuses()[200]
    wait_until(lambda: load.history.statuses()[200] > served + 1_000, "claims to be served again")
    history = load.stop()
    assert set(history.statuses()) == {200, 503}
    for name in COUNTERS:
        owned = history.of(name).owned()
        assert len(owned) == len(set(owned)), history.summary()
        assert count_of(running, name) >= len(owned)


def is_counted(service: Service, name: str, count: int) -> bool:
    return count_of(service, name) == count


def test_a_reset_under_load_reaches_every_lease_and_frees_nothing_of_the_new_epoch(
    victim: Victim, service: Callable[..., Service]
) -> None:
    high = 100_000
    running = service(victim.url, "/readyz")
    put_counters(running, FAR, COUNTERS)
    for name in COUNTERS:
        # The numbers that follow tell their epoch.
        assert claim(running, name, high)[0] == 200
    load = Load(running, counters=COUNTERS, pace=0.01)
    load.wait_for(1_000)
    for name in COUNTERS:
        assert running.get(f"/counters/{name}", "DELETE", **ADMIN)[0] == 204
        assert put(running, name, FAR) in (200, 201)
    over = time.monotonic() + LEASE_SECONDS
    load.wait_for(1_000)
    wait_until(lambda: time.monotonic() > over, "every lease of the epoch before to be over")
    load.wait_for(1_000)  # what was answered from one may only be read now
    ended = load.done
    load.wait_for(1_000)
    history = load.stop()
    assert all(number < high for call in history.calls[ended:] for number in call.numbers)
    assert set(history.statuses()) <= {200, 404}
    for name in COUNTERS:
        of_name = history.of(name)
        owned = of_name.owned()
        assert len(owned) == len(set(owned)), history.summary()
        new = [number for number in owned if number < high]
        try:
            wait_until(partial(is_counted, running, name, len(new)), "leases to come back")
        except AssertionError:
            pytest.fail(f"{len(new)} were given, {running.get(f'/counters/{name}')}\n{tail(running)}")


def test_a_limit_lowered_under_load_reaches_every_lease(victim: Victim, service: Callable[..., Service]) -> None:
    running = service(victim.url, "/readyz")
    put_counters(running, FAR, COUNTERS)
    load = Load(running, counters=COUNTERS, pace=0.01)
    load.wait_for(1_000)
    for name in COUNTERS:
        assert put(running, name, 10) == 200
    wait_until(lambda: {call.status for call in load.history.calls[-100:]} == {429}, "every lease to be over")
    ended = load.done
    load.wait_for(200)
    assert {call.status for call in load.history.calls[ended:]} == {429}
    for name in COUNTERS:
        assert put(running, name, FAR) == 200
    served = load.history.statuses()[200]
    wait_until(lambda: load.history.statuses()[200] > served + 500, "claims to be served again")
    judge(load.stop(), running, limit=FAR, statuses={200, 429})


def test_a_claim_waits_for_another_workers_lease_and_is_refused_only_when_that_is_over(
    victim: Victim, service: Callable[..., Service]
) -> None:
    if not isinstance(victim, RedisVictim):
        pytest.skip("looks into Redis")
    server = victim.server
    holder = service(victim.url, "/readyz", workers=1)
    other = service(victim.url, "/readyz", workers=1, halt_cache=0)
    [pid] = holder.worker_pids()
    limit, waited = 1_000, set()

    def round_(name: str) -> None:
        key = f"pythonricing:{{{name}}}"
        put_counters(other, limit, [name])
        load = Load(holder, counters=[name], clients=4)
        leases = wait_until(
            lambda: [field for field in server.run("HKEYS", key) if field.startswith("lease:")], "a lease to be out"
        )
        with paused(pid):
            # Its clients wait for it, and the store knows what it holds.
            left = limit - count_of(other, name)
            assert left == 0 or claim(other, name, left)[0] == 200
            answers: list[tuple[int, Any]] = []
            asked = threading.Thread(target=lambda: answers.append(claim(other, name)))
            asked.start()
            # What comes back is for this claim: the holder's clients claim no more.
            stopping = threading.Thread(target=load.stop)
            stopping.start()
            lease = server.run("HGET", key, leases[0])
        asked.join()
        seconds, micros = (int(part) for part in server.run("TIME"))
        stopping.join()
        [(status, _)] = answers
        if status == 429 and lease is not None:
            # Not before the lease could no longer be waited for, or had come back and been given to others.
            free = limit - count_of(other, name)
            late = seconds * 1_000_000 + micros >= int(lease.split()[1]) + LEASE_RETURN_SECONDS * 1e6
            assert late or free == 0
        waited.add(status)

    for number in range(5):
        round_(f"round-{number}")
    assert waited <= {200, 429}


@pytest.mark.parametrize("command", ["granian", "uvicorn"])
def test_sigterm_gives_leases_back(command: str, victim: Victim, service: Callable[..., Service]) -> None:
    running = service(victim.url, "/readyz", command=command)
    put_counters(running, FAR, COUNTERS)
    load = Load(running, counters=COUNTERS, clients=16, pace=0.05)
    load.wait_for(1_000)
    assert running.terminate() == 0
    history = load.stop()
    if isinstance(victim, RedisVictim):
        for name in COUNTERS:
            fields = victim.server.run("HKEYS", f"pythonricing:{{{name}}}")
            assert not [field for field in fields if field.startswith("lease:")]
    running.start("/readyz")
    judge(history, running, limit=FAR, statuses={200, 0, 503})


def test_a_lease_ends_with_its_connection(victim: Victim, proxy: Proxy) -> None:
    now = 1000.0  # the worker's clock doesn't end it

    async def run() -> None:
        nonlocal now
        store = create_store(victim.proxied(proxy), 20)
        worker = Counters(store, Journal(), clock=lambda: now, timeout=20)
        await worker.open()
        given = dict.fromkeys(COUNTERS, 0)
        for name in COUNTERS:
            await worker.put(name, FAR)
        for _ in range(100):
            now += 0.001
            for name in COUNTERS:
                await worker.claim(name)
                given[name] += 1
            worker._worker.tell()
        for name in COUNTERS:
            assert worker.claim(name).done()
            given[name] += 1
        await asyncio.to_thread(proxy.set, "refuse")
        async with asyncio.timeout(20):
            while any(server.connected for server in store.servers()):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        waiting = [worker.claim(name) for name in COUNTERS]
        await asyncio.sleep(0.1)
        assert not any(each.done() for each in waiting)
        await asyncio.to_thread(proxy.set, "pass")
        for name, answer in zip(COUNTERS, await asyncio.gather(*waiting), strict=True):
            assert answer.admitted
            given[name] += 1
        await worker.close()
        reader = create_store(victim.url, 20)
        await reader.open()
        await reader.ready()
        for name in COUNTERS:
            counter = await reader.read(name)
            assert (counter.count, counter.leased) == (given[name], 0)
        await reader.close()

    asyncio.run(run())
