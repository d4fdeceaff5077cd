"""Operators who speak at the wrong moment: after a loss, before a 503, and to a store that is full."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.load import ADMIN
from loadtests.rig.victims import RedisVictim
from loadtests.rig.waiting import wait_until
from pythonricing.stores.redis.store import DELETE

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim

#: Every test claims from two counters.
COUNTERS = ("seats", "tickets")


def put(running: Service, limit: int, *names: str) -> list[int]:
    """Set the limit of these counters; the statuses."""
    return [
        running.get(f"/counters/{name}", "PUT", json.dumps({"limit": limit}).encode(), **ADMIN)[0]
        for name in names or COUNTERS
    ]


def claim(running: Service, name: str, n: int = 1, **headers: str) -> tuple[int, Any]:
    status, body = running.get(f"/counters/{name}?n={n}", "POST", b"", **headers)
    return status, body.get("request_count") if status in (200, 429) else body["title"]


def claim_each(running: Service, n: int, *expected: Any) -> None:
    for name in COUNTERS:
        assert claim(running, name, n) == expected


def start(service: Callable[..., Service], url: str, **settings: object) -> Service:
    # Nothing is refused from memory: what the store says is what is tested.
    return service(url, "/readyz", workers=1, store_timeout=20, halt_cache=0, **settings)


def test_putting_a_counter_after_a_loss_that_nobody_noticed_gives_no_number_twice(
    victim: Victim, service: Callable[..., Service]
) -> None:
    running = start(service, victim.url)
    assert put(running, 100) == [201, 201]
    claim_each(running, 80, 200, 80)
    victim.wipe()
    # A deployment makes sure of its counters.
    # A 503 where it is the first to notice, and a 200 where the worker had to connect again and has told already.
    assert set(put(running, 100)) <= {200, 503}
    assert put(running, 100) == [200, 200]
    claim_each(running, 20, 200, 100)
    claim_each(running, 1, 429, 100)


def test_an_older_copy_that_lacks_only_a_lowered_limit_is_a_loss(
    victim: Victim, service: Callable[..., Service]
) -> None:
    running = start(service, victim.url)
    put(running, 1000)
    claim_each(running, 200, 200, 200)
    victim.backup()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    assert put(running, 200) == [200, 200]
    claim_each(running, 1, 429, 200)
    victim.restore()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    claim_each(running, 1, 503, "State lost")
    lost = {r["extra"]["counter"] for r in running.log() if r["level"]["name"] == "CRITICAL"}
    assert lost == set(COUNTERS)


def test_an_older_copy_that_lacks_only_a_deletion_is_a_loss(victim: Victim, service: Callable[..., Service]) -> None:
    running = start(service, victim.url)
    put(running, 100)
    claim_each(running, 20, 200, 20)
    victim.backup()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    for name in COUNTERS:
        assert running.get(f"/counters/{name}", "DELETE", **ADMIN)[0] == 204
    victim.restore()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    claim_each(running, 1, 503, "State lost")


def test_with_raise_the_limit_of_the_latest_word_wins(victim: Victim, service: Callable[..., Service]) -> None:
    running = start(service, victim.url, on_loss="raise")
    put(running, 1000)
    claim_each(running, 200, 200, 200)
    victim.backup()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    put(running, 205)
    victim.restore()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    claim_each(running, 5, 200, 205)
    claim_each(running, 1, 429, 205)


def test_every_worker_tells_what_it_knows_of_a_lost_counter(victim: Victim, service: Callable[..., Service]) -> None:
    first, second = (start(service, victim.url) for _ in range(2))
    put(first, 100)
    claim_each(first, 16, 200, 16)
    claim_each(second, 20, 200, 36)
    victim.wipe()
    for each in (first, second):
        claim_each(each, 1, 503, "State lost")
    assert put(first, 100) == [200, 200]
    claim_each(first, 1, 200, 37)
    claim_each(second, 1, 200, 38)


def test_a_word_that_the_network_held_back_is_not_executed_after_its_503(
    victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    # Only the second one's way to the store is bad.
    good = start(service, victim.url)
    bad = service(victim.proxied(proxy), "/readyz", workers=1, store_timeout=2)
    put(good, 100)
    claim_each(good, 20, 200, 20)
    marks = (DELETE.digest.encode(), DELETE.source[-200:], b"pythonricing.delete")
    proxy.set("hold", holds=lambda data: any(mark in data for mark in marks))
    for name in COUNTERS:
        assert bad.get(f"/counters/{name}", "DELETE", **ADMIN)[0] == 503
        assert good.get(f"/counters/{name}", "DELETE", **ADMIN)[0] == 204
    put(good, 100)
    claim_each(good, 20, 200, 20)
    proxy.set("pass")
    proxy.release()
    wait_until(lambda: proxy.late, "the held words to be delivered")
    wait_until(lambda: bad.get("/readyz")[0] == 200, "the service to be ready again")
    claim_each(good, 1, 200, 21)
    claim_each(bad, 1, 200, 22)


def test_keys_outlive_a_put_that_ends_a_loss(victim: Victim, service: Callable[..., Service]) -> None:
    running = start(service, victim.url)
    put(running, 100)
    for name in COUNTERS:
        assert claim(running, name, idempotency_key="order-a") == (200, 1)
    victim.backup()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    claim_each(running, 9, 200, 10)
    victim.restore()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready again")
    claim_each(running, 1, 503, "State lost")
    assert put(running, 100) == [200, 200]
    for name in COUNTERS:
        assert claim(running, name, idempotency_key="order-a") == (200, 1)
        assert claim(running, name) == (200, 11)


def test_the_limit_of_the_settings_is_set_as_soon_as_a_full_store_takes_it(
    victim: Victim, service: Callable[..., Service]
) -> None:
    if not isinstance(victim, RedisVictim):
        pytest.skip("PostgreSQL has no bound of its own to be full at")
    assert victim.server.command("CONFIG", "SET", "maxmemory", "1") == "+OK"
    running = service(victim.url, "/livez", workers=1, store_timeout=0.5, limit=5)
    assert claim(running, "default")[0] == 503
    assert victim.server.command("CONFIG", "SET", "maxmemory", "0") == "+OK"
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")
    put(running, 5, *COUNTERS)
    for name in ("default", *COUNTERS):
        assert claim(running, name, 5) == (200, 5)
        assert claim(running, name) == (429, 5)


def test_a_lost_counter_leaves_the_service_ready_and_is_named(victim: Victim, service: Callable[..., Service]) -> None:
    running = start(service, victim.url)
    put(running, 100)
    victim.wipe()
    assert running.get("/readyz")[0] == 503
    assert running.get("/counters/default", "DELETE", **ADMIN)[0] == 204
    assert claim(running, "seats") == (503, "State lost")
    status, body = running.get("/readyz")
    assert status == 200
    assert "seats" in body["lost"]
    assert claim(running, "default") == (200, 1)
    assert put(running, 100) in ([200, 200], [200, 503])
    assert put(running, 100) == [200, 200]
    assert claim(running, "seats") == (200, 1)
    assert "lost" not in running.get("/readyz")[1]
