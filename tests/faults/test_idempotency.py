"""One Idempotency-Key is one claim: however often, wherever and through whatever fault it is sent."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.clients import Client
from loadtests.rig.judge import count_of, judge
from loadtests.rig.load import ADMIN, COUNTERS, Load, put_counters
from loadtests.rig.victims import kill_a_worker
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim


async def together(port: int, paths: list[str], key: str) -> list[tuple[int, Any]]:
    """Claim with one key on a connection each, all at once."""
    clients = [Client(port) for _ in paths]
    try:
        return await asyncio.gather(
            *(client.request(path, Idempotency_Key=key) for client, path in zip(clients, paths, strict=True))
        )
    finally:
        for client in clients:
            client.close()


def answer_to(service: Service, path: str, key: str) -> tuple[int, Any]:
    """The answer to a claim with this key, once the service is able to give it."""

    def answer() -> tuple[int, Any] | None:
        status, body = service.get(path, "POST", idempotency_key=key)
        return (status, body) if status not in (0, 503) else None

    found: tuple[int, Any] = wait_until(answer, "an answer")
    return found


def wait_for_a_503(load: Load) -> None:
    before = load.history.statuses().get(503, 0)
    wait_until(lambda: load.history.statuses().get(503, 0) > before, "a claim to be given up")


def test_concurrent_requests_with_one_key_are_one_claim(victim: Victim, service: Callable[..., Service]) -> None:
    running = service(victim.url, "/readyz")
    put_counters(running, 100)
    paths = [f"/counters/{name}" for name in COUNTERS] * 8
    for number in range(1, 21):
        answers = asyncio.run(together(running.port, paths, f"key-{number}"))
        assert answers == [(200, {"request_count": number, "limit": 100})] * len(paths)
    assert [count_of(running, name) for name in COUNTERS] == [20] * len(COUNTERS)


def test_a_key_with_another_size_is_refused(victim: Victim, service: Callable[..., Service]) -> None:
    running = service(victim.url, "/readyz", limit=100)
    path = "/counters/default"
    answers = asyncio.run(together(running.port, [f"{path}?n=2", f"{path}?n=3"] * 8, "one"))
    statuses = sorted(status for status, _ in answers)
    assert statuses == [200] * 8 + [422] * 8
    assert count_of(running) in (2, 3)
    first = count_of(running)
    assert running.get(f"{path}?n=4", "POST", idempotency_key="one")[0] == 422
    assert running.get(f"{path}?n={first}", "POST", idempotency_key="one") == (
        200,
        {"request_count": first, "limit": 100},
    )


def test_a_key_is_known_to_one_counter_only(victim: Victim, service: Callable[..., Service]) -> None:
    running = service(victim.url, "/readyz", limit=100)
    running.get("/counters/seats", "PUT", b'{"limit": 10}', **ADMIN)
    assert running.get("/", "POST", idempotency_key="k")[1]["request_count"] == 1
    assert running.get("/counters/seats", "POST", idempotency_key="k")[1]["request_count"] == 1
    assert running.get("/counters/seats", "POST", idempotency_key="k")[1]["request_count"] == 1


@pytest.mark.parametrize("halt_cache", [0.1, 60])
def test_a_key_repeats_a_refusal_and_an_admission_whatever_the_halt_cache_says(
    halt_cache: float, victim: Victim, service: Callable[..., Service]
) -> None:
    running = service(victim.url, "/readyz", limit=1, halt_cache=halt_cache)
    admitted = running.get("/", "POST", idempotency_key="first")
    assert admitted == (200, {"request_count": 1, "limit": 1})
    for _ in range(20):
        assert running.get("/", "POST")[0] == 429
    refused = running.get("/", "POST", idempotency_key="second")
    assert refused[0] == 429
    for _ in range(20):
        assert running.get("/", "POST", idempotency_key="first") == admitted
    # There is room now, but the second key has had its answer.
    assert running.get("/counters/default", "PUT", b'{"limit": 5}', **ADMIN)[0] == 200
    for _ in range(20):
        assert running.get("/", "POST", idempotency_key="second")[0] == 429
    assert running.get("/", "POST", idempotency_key="third") == (200, {"request_count": 2, "limit": 5})
    assert count_of(running) == 2


def test_a_key_given_during_an_outage_is_one_claim_after_it(
    victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    running = service(victim.proxied(proxy), "/readyz", store_timeout=0.5)
    put_counters(running, 100)
    paths = [f"/counters/{name}" for name in COUNTERS]
    proxy.set("deaf")
    # Executed by the store, perhaps more than once over different workers, and never answered.
    for _ in range(4):
        assert [status for status, _ in asyncio.run(together(running.port, paths, "k"))] == [503] * len(paths)
    proxy.set("pass")
    for path in paths:
        assert answer_to(running, path, "k") == (200, {"request_count": 1, "limit": 100})
    assert [count_of(running, name) for name in COUNTERS] == [1] * len(COUNTERS)


def test_a_key_outlives_the_worker_that_used_it_and_the_store(victim: Victim, service: Callable[..., Service]) -> None:
    running = service(victim.url, "/readyz", store_timeout=20)
    put_counters(running, 100)
    keys = [(f"/counters/{name}", os.urandom(8).hex()) for name in COUNTERS for _ in range(10)]
    first = {(path, key): running.get(path, "POST", idempotency_key=key) for path, key in keys}
    kill_a_worker(running)
    victim.kill()
    victim.start()
    for path, key in keys:
        assert answer_to(running, path, key) == first[path, key]
    assert [count_of(running, name) for name in COUNTERS] == [10] * len(COUNTERS)


def test_keys_make_every_claim_count_once_through_a_store_that_is_paused_too_long(
    victim: Victim, service: Callable[..., Service]
) -> None:
    claims, limit = 3_000, 800
    running = service(victim.url, "/readyz", store_timeout=0.4)
    put_counters(running, limit)
    load = Load(running, claims, clients=16, keys=True, retry={0, 503}, pace=0.05)
    for _ in range(2):
        load.wait_for(500)
        victim.pause()
        wait_for_a_503(load)
        victim.resume()
    history = load.join()
    assert history.admitted() == dict.fromkeys(COUNTERS, limit)
    judge(history, running, limit=limit, statuses={200, 429, 503})
