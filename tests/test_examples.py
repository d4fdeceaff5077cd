"""The two worked examples do what their page says."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import httpx
import pytest

import pythonricing
from tests.docs_check import ROOT, blocks
from tests.test_library import URL, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

PAGE = (ROOT / "docs/examples.md").read_text()
SALE, QUOTA = (code for code in blocks(PAGE) if "import" in code)
TOKEN = "t"


def names_of(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "docs/examples.md", "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def shop(empty_valkey: RedisServer, service: Callable[..., Service]) -> Service:
    running = service(empty_valkey.url, "/readyz", admin_token=TOKEN)
    rules = b'{"limit": 10, "each": 4}'
    assert running.get("/counters/tickets", "PUT", rules, Authorization=f"Bearer {TOKEN}")[0] == 201
    return running


def test_the_sale_is_a_script(shop: Service) -> None:
    script = SALE.replace("http://127.0.0.1:8080", shop.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "alice has [1, 2]\n"


def test_the_sale_sells_every_ticket_although_many_do_not_pay(shop: Service) -> None:
    buy = names_of(SALE.replace('"hold": 600', '"hold": 1'))["buy"]

    def never() -> bool:
        raise ZeroDivisionError  # the shop has died

    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=shop.url, timeout=60) as client:
        owned: dict[str, list[int]] = {}

        def visit(number: int) -> None:
            buyer, pays = f"buyer-{number}", never if number % 3 == 0 else lambda: number % 5 != 0
            with suppress(ZeroDivisionError):
                owned.setdefault(buyer, []).extend(buy(client, buyer, 1 + number // 3 % 3, f"order-{number}", pays))

        def over() -> bool:
            counter = shop.get("/counters/tickets")[1]
            return counter["halted"] and "held" not in counter

        rounds = 0
        while not over():
            list(pool.map(visit, range(100 * rounds, 100 * rounds + 15)))
            rounds += 1
        numbers = [number for tickets in owned.values() for number in tickets]
        assert (len(numbers), len(set(numbers))) == (10, 10)
        assert buy(client, "late", 1, "order-late", lambda: True) == []
        # Asked again, an order is the same.
        buyer, tickets = next((buyer, tickets) for buyer, tickets in owned.items() if tickets)
        assert buy(client, buyer, len(tickets), f"order-{buyer.removeprefix('buyer-')}", lambda: True) == tickets


def test_the_sale_gives_nobody_more_than_four(shop: Service) -> None:
    buy = names_of(SALE)["buy"]
    with httpx.Client(base_url=shop.url, timeout=60) as client:
        assert buy(client, "alice", 3, "one", lambda: True) == [1, 2, 3]
        assert buy(client, "alice", 2, "two", lambda: True) == []
        assert buy(client, "alice", 1, "three", lambda: False) == []
        assert buy(client, "alice", 1, "four", lambda: True) == [5]
        assert buy(client, "bob", 4, "five", lambda: True) == [6, 7, 8, 9]


def quota(app: Any, key: str, requests: int) -> list[httpx.Response]:
    return asyncio.run(ask(app, requests, "/report", method="GET", **{"x-api-key": key}))


def put(store: str, limit: int, each: int, every: str, zone: str = "") -> None:
    async def main() -> None:
        async with pythonricing.open_counters(store, store_timeout=60) as counters:
            await counters.put("api", limit, each=each, every=every, zone=zone)

    asyncio.run(main())


def test_each_customer_has_a_quota_until_midnight(empty_valkey: RedisServer) -> None:
    app = names_of(QUOTA.replace(URL, empty_valkey.url))["app"]
    (zone,) = set(re.findall(r"--zone (\S+)", PAGE))
    put(empty_valkey.url, 5, 3, "day", zone)
    answers = quota(app, "key-of-alice", 5)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 2
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["detail"] == "your 3 requests of today are used up"
    now = datetime.now(ZoneInfo(zone))
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert abs(int(refused.headers["retry-after"]) - (midnight.timestamp() - now.timestamp())) < 600
    answers = quota(app, "key-of-bob", 3)
    assert [answer.json()["detail"] for answer in answers if answer.status_code == 429] == [
        "all requests of today are used up"
    ]
    assert quota(app, "key-of-carol", 1)[0].status_code == 401


def test_with_the_next_window_everybody_has_it_again(empty_valkey: RedisServer) -> None:
    app = names_of(QUOTA.replace(URL, empty_valkey.url))["app"]
    put(empty_valkey.url, 5, 1, "1s")
    # Two of four are admitted only by two windows.
    admitted = 0
    while admitted < 3:
        answers = quota(app, "key-of-alice", 4)
        admitted += sum(answer.status_code == 200 for answer in answers)
        assert {answer.status_code for answer in answers} <= {200, 429}


def test_the_quota_is_a_503_while_the_store_is_away(empty_valkey: RedisServer) -> None:
    app = names_of(QUOTA.replace(URL, empty_valkey.url))["app"]
    (answer,) = quota(app, "key-of-alice", 1)  # nobody has made the counter
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
