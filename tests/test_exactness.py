"""Exactly the limit is admitted, and every number once, whatever the server, the store and the sizes."""

from __future__ import annotations

import asyncio
from itertools import cycle, islice
from typing import TYPE_CHECKING

import pytest

from loadtests.audit import COUNTERS, claim_all, judge
from loadtests.rig.clients import hammer
from loadtests.rig.load import ADMIN, TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.service import Service


@pytest.mark.parametrize("store", ["empty_valkey", "empty_postgres"])
@pytest.mark.parametrize(("server", "lease"), [("granian", 0.01), ("uvicorn", 0.01), ("granian", 0), ("uvicorn", 0.1)])
@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 5, 8)], ids=["singles", "mixed"])
def test_sixteen_workers_admit_exactly_the_limit(
    server: str,
    lease: float,
    sizes: tuple[int, ...],
    store: str,
    request: pytest.FixtureRequest,
    service: Callable[..., Service],
) -> None:
    limit = 5_000
    url = request.getfixturevalue(store).url
    running = service(url, "/readyz", command=server, workers=16, limit=limit, lease=lease, request_log="on")
    history = asyncio.run(hammer(running.port, 64, islice(cycle(sizes), 20_000)))
    assert set(history.statuses()) == {200, 429}
    assert history.owned() == list(range(1, limit + 1))
    assert running.get("/counters/default")[1]["count"] == limit
    assert running.terminate() == 0
    logged = [r["extra"] for r in running.log() if "request_count" in r["extra"]]
    runs = [run for e in logged for run in e.get("numbers", [(e["request_count"] - e["n"] + 1, e["request_count"])])]
    numbers = [number for first, last in runs for number in range(first, last + 1)]
    assert sorted(numbers) == list(range(1, limit + 1))


@pytest.mark.parametrize("store", ["empty_valkey", "empty_postgres"])
def test_sixteen_workers_admit_exactly_the_limits_of_eight_counters(
    store: str, request: pytest.FixtureRequest, service: Callable[..., Service]
) -> None:
    """In sizes of 1 to 8, some claims with keys: each number is the counter's that was asked, and has one owner."""
    url = request.getfixturevalue(store).url
    running = service(url, workers=16, admin_token=TOKEN, wait_for="/readyz")
    for name, limit in COUNTERS.items():
        assert running.get(f"/counters/{name}", "PUT", b'{"limit": %d}' % limit, **ADMIN)[0] == 201
    history = asyncio.run(claim_all(running.port, COUNTERS))
    readings = {name: running.get(f"/counters/{name}")[1] for name in COUNTERS}
    assert judge(history, COUNTERS, readings).verdict == "exact"
