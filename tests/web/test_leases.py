"""Where leases show over HTTP: scattered numbers, and how many of a count nobody has got yet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import jsonschema  # type: ignore[import-untyped]

from loadtests.rig.waiting import wait_until
from pythonricing.web import openapi, routes
from tests.stores.support import lending, scatter
from tests.web.support import ADMIN, count

if TYPE_CHECKING:
    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


def test_scattered_numbers_are_told_run_by_run_and_their_key_gets_them_again(
    api: Service, valkey: RedisServer, name: str
) -> None:
    api.get(f"/counters/{name}", "PUT", b'{"limit": 1000}', **ADMIN)
    asyncio.run(scatter(valkey.url, name))
    assert count(api, name) == 998
    claimed = {"request_count": 4, "limit": 1000, "numbers": [[2, 2], [4, 4]]}
    for _ in range(2):
        assert api.get(f"/counters/{name}?n=2", "POST", Idempotency_Key="one") == (200, claimed)
    assert count(api, name) == 1000
    assert api.get(f"/counters/{name}", "POST")[0] == 429
    schema = openapi.document(routes.OPERATIONS)["components"]["schemas"]["Claimed"]
    jsonschema.validate(claimed, schema)
    assert schema["required"] == ["request_count", "limit"]

    def told() -> list[object]:
        extras = [record["extra"] for record in api.log()]
        return [each.get("numbers") for each in extras if each.get("counter") == name and "request_count" in each]

    wait_until(lambda: told() == [[[2, 2], [4, 4]]], "the line of the claim")


def test_what_is_out_on_lease_is_told_beside_the_count(api: Service, valkey: RedisServer, name: str) -> None:
    api.get(f"/counters/{name}", "PUT", b'{"limit": 1000000}', **ADMIN)
    assert api.get(f"/counters/{name}")[1]["leased"] == 0
    with lending(valkey.url, name):
        wait_until(lambda: api.get(f"/counters/{name}")[1]["leased"] == 8, "the lease to show")

        def listed() -> int:
            counters = api.get("/counters?limit=1000", **ADMIN)[1]["counters"]
            leased: int = next(each["leased"] for each in counters if each["name"] == name)
            return leased

        wait_until(lambda: listed() == 8, "the lease to show in the list")
    wait_until(lambda: api.get(f"/counters/{name}")[1]["leased"] == 0, "a lease that never came back to be spent")
    assert count(api, name) % 8 == 0
