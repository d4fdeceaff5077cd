"""The client that docs/clients.md shows claims once, waits for what is away, and doesn't come again for nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from loadtests.rig.waiting import wait_until
from tests.docs_check import ROOT, blocks
from tests.web.support import ADMIN, TOKEN, count

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

NAMES: dict[str, Any] = {}
exec(next(code for code in blocks((ROOT / "docs/clients.md").read_text()) if "import httpx" in code), NAMES)
claim = NAMES["claim"]


def recording(url: str, statuses: list[int]) -> httpx.Client:
    """A client that keeps the status of every answer."""
    return httpx.Client(
        base_url=url, timeout=60, event_hooks={"response": [lambda it: statuses.append(it.status_code)]}
    )


def test_it_claims_and_is_refused_once(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, "/readyz", limit=3)
    statuses: list[int] = []
    with recording(running.url, statuses) as client:
        assert [claim(client, "default", 2), claim(client, "default", 2), claim(client, "default")] == [2, None, 3]
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            claim(client, "nobody")
    assert statuses == [200, 429, 200, 404]


def test_what_it_tries_again_counts_once(
    redis_server: Callable[..., RedisServer], service: Callable[..., Service]
) -> None:
    store = redis_server()
    running = service(store.url, "/readyz", limit=10, store_timeout=0.3)
    statuses: list[int] = []
    with recording(running.url, statuses) as client, ThreadPoolExecutor(1) as pool:
        store.pause()
        claiming = pool.submit(claim, client, "default", 2, 100)
        wait_until(lambda: 503 in statuses, "the first try to fail")
        store.resume()
        assert claiming.result() == 2
    wait_until(lambda: running.get("/counters/default")[0] == 200, "the service to read")
    assert count(running) == 2
    assert set(statuses) == {503, 200}


def test_a_service_that_is_away_is_waited_for(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, "/readyz", admin_token=TOKEN)
    running.stop()
    with recording(running.url, []) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(TimeoutError, match="1 tries"):
            claim(client, "default", tries=1)
        claiming = pool.submit(claim, client, "default", 1, 100)
        running.start("/readyz")
        assert claiming.result() == 1
    assert running.get("/counters/default", "DELETE", **ADMIN)[0] == 204


@pytest.mark.parametrize(("headers", "least"), [({"Retry-After": "3"}, 3), ({}, 1)])
def test_both_clients_come_again_at_random_moments_after_a_503(
    headers: dict[str, str], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    example: dict[str, Any] = {"__name__": "example"}
    exec(next(code for code in blocks((ROOT / "docs/examples.md").read_text()) if "def ask" in code), example)
    proxy = httpx.MockTransport(lambda _: httpx.Response(503, headers=headers))
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with httpx.Client(transport=proxy, base_url="http://proxy") as client:
        for ask, what in ((claim, ["default"]), (example["ask"], ["POST", "/"])):
            slept.clear()
            with pytest.raises(TimeoutError, match="no answer"):
                ask(client, *what)
            assert len(set(slept)) == len(slept) >= 5
            assert least <= min(slept) <= max(slept) <= 2 * least
