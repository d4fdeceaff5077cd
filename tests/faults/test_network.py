"""The network between service and store loses replies, delays, cuts, goes silent, refuses, or delivers late."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.clients import Client
from loadtests.rig.judge import count_of, judge, orphans
from loadtests.rig.load import COUNTERS, Load, put_counters, until_sold_out
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.proxy import Mode, Proxy
    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim


@pytest.mark.parametrize("mode", ["deaf", "cut", "refuse", "delay"])
def test_a_fault_shorter_than_the_timeout_fails_no_claim(
    mode: Mode, victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    claims, limit = 6_000, 1_500
    # A silent connection is given up after half of the timeout.
    timeout = 4 if mode == "deaf" else 20
    running = service(victim.proxied(proxy), "/readyz", store_timeout=timeout)
    put_counters(running, limit)
    load = Load(running, claims)
    for _ in range(3):
        load.wait_for(500)
        proxy.set(mode, delay=0.05)
        if mode in ("deaf", "cut"):
            proxy.wait_for_a_lost_reply()
        else:
            time.sleep(0.3)
        proxy.set("pass")
    history = until_sold_out(load, running, limit)
    judge(history, running, limit=limit, statuses={200, 429})


@pytest.mark.parametrize("mode", ["deaf", "silent", "refuse", "delay"])
def test_a_fault_longer_than_the_timeout_fails_claims_and_admits_none_of_them(
    mode: Mode, victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    limit = 1_000_000
    running = service(victim.proxied(proxy), "/readyz", store_timeout=0.5)
    put_counters(running, limit)
    load = Load(running)
    load.wait_for(1_000)
    proxy.set(mode, delay=2.0)
    load.wait_for(100)
    wait_until(lambda: 503 in load.history.statuses(), "a claim to be given up")
    assert running.get("/readyz")[0] == 503
    assert running.get("/livez")[0] == 200
    proxy.set("pass")
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    load.wait_for(1_000)
    history = load.stop()
    judge(history, running, limit=limit, statuses={200, 503})


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_batch_that_arrives_after_its_repeat_is_not_executed_again(
    victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    limit = 1_000_000
    running = service(victim.proxied(proxy), "/readyz", store_timeout=4)
    put_counters(running, limit)
    load = Load(running)
    load.wait_for(1_000)
    proxy.set("hold")
    wait_until(lambda: [pipe for pipe in proxy.pipes if pipe.held], "a command to be held")
    proxy.set("pass")
    load.wait_for(500)
    proxy.release()
    wait_until(lambda: proxy.late, "the held command to be delivered")
    load.wait_for(500)
    history = load.stop()
    time.sleep(proxy.linger)
    judge(history, running, limit=limit, statuses={200})


def test_a_claim_waits_no_longer_than_the_timeout(
    victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    running = service(victim.proxied(proxy), "/readyz", store_timeout=1)
    put_counters(running, 10)
    proxy.set("silent")

    async def claim(counter: str) -> tuple[int, Any, float]:
        asked = time.monotonic()
        status, body = await Client(running.port).request(f"/counters/{counter}")
        return status, body, time.monotonic() - asked

    async def claim_from_all() -> list[tuple[int, Any, float]]:
        return await asyncio.gather(*map(claim, COUNTERS))

    for status, problem, waited in asyncio.run(claim_from_all()):
        assert (status, problem["type"]) == (503, "urn:pythonricing:store-unavailable")
        # Earlier than 1 s would give up too soon; the margin is for slow machines.
        assert 0.9 < waited < 10
    proxy.set("pass")
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    answers = asyncio.run(claim_from_all())
    assert [status for status, _, _ in answers] == [200] * len(COUNTERS)
    numbers = [body["request_count"] for _, body, _ in answers]
    wait_until(lambda: [count_of(running, name) for name in COUNTERS] == numbers, "the counts to settle")


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
def test_a_claim_whose_client_has_left_is_logged_as_an_orphan(
    server: str, victim: Victim, service: Callable[..., Service]
) -> None:
    running = service(victim.url, "/readyz", command=server, store_timeout=30)
    put_counters(running, 100)

    async def leave() -> None:
        paths = [f"/counters/{name}" for name in COUNTERS] * 8
        claims = [asyncio.create_task(Client(running.port).request(path)) for path in paths]
        await asyncio.sleep(1)  # the service asks after a while
        assert not any(claim.done() for claim in claims)
        for claim in claims:
            claim.cancel()
        await asyncio.gather(*claims, return_exceptions=True)
        await asyncio.sleep(1)

    victim.pause()
    asyncio.run(leave())
    victim.resume()
    for counter in COUNTERS:
        assert running.get(f"/counters/{counter}", "POST")[0] == 200
    left = {counter: count_of(running, counter) - 1 for counter in COUNTERS}
    wait_until(lambda: {name: len(orphans(running, name)) for name in COUNTERS} == left, "the orphans to be logged")
    # What hadn't been sent to the store when its client left never was.
    assert all(1 <= count <= 8 for count in left.values())
