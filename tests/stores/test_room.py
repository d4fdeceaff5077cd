"""What holds and claimants take in a store, in bytes: `pytest -s tests/stores/test_room.py` prints it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import pythonricing

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer
    from pythonricing.library import OpenCounters

#: How many of each are made: just beyond where Valkey's table has grown, which takes the most for each.
MANY = 2_500
#: Bytes that a hold may take, beside what its claimant takes anyway.
MOST = 300
TABLES = ("hold", "owner", "claimant", "given_back")


@pytest.fixture(params=["valkey", "postgresql"])
def taken(request: pytest.FixtureRequest) -> tuple[str, Callable[[], int]]:
    """A store, and the bytes that its counter `seats` takes."""
    if request.param == "valkey":
        valkey: RedisServer = request.getfixturevalue("empty_valkey")
        return valkey.url, lambda: int(valkey.run("MEMORY", "USAGE", "pythonricing:{seats}", "SAMPLES", 0))
    postgres: PostgresServer = request.getfixturevalue("empty_postgres")

    def size() -> int:
        sizes = [postgres.sql(f"VACUUM pythonricing.{table}", f"SELECT pg_total_relation_size('pythonricing.{table}')")
                 for table in TABLES]  # fmt: skip
        return sum(rows[0][0] for rows in sizes)

    return postgres.url, size


async def grown(counters: OpenCounters, size: Callable[[], int], *, hold: bool, claimants: bool) -> dict[str, float]:
    """The bytes of a claim of one number, once it is made, and once its hold is confirmed."""
    await counters.put("seats", MANY, each=4 if claimants else None)
    before = await asyncio.to_thread(size)
    wishes: list[dict[str, Any]] = [
        {"hold": 600 if hold else 0, "claimant": f"customer-{number:07}" if claimants else ""} for number in range(MANY)
    ]
    answers = await asyncio.gather(*(counters.claim("seats", **wish) for wish in wishes))
    assert all(answer.admitted for answer in answers)
    figures = {"made": (await asyncio.to_thread(size) - before) / MANY}
    if hold:
        await asyncio.gather(*(counters.confirm("seats", answer.hold) for answer in answers))
        figures["confirmed"] = (await asyncio.to_thread(size) - before) / MANY
    return figures


@pytest.mark.parametrize("claimants", [False, True], ids=["for-anybody", "for-claimants"])
def test_a_hold_takes_at_most_300_bytes(
    claimants: bool, taken: tuple[str, Callable[[], int]], request: pytest.FixtureRequest
) -> None:
    url, size = taken

    async def main() -> None:
        async with pythonricing.open_counters(url, store_timeout=60) as counters:
            without = 0.0
            if claimants:
                without = (await grown(counters, size, hold=False, claimants=True))["made"]
                print(f"\n{url.partition(':')[0]}: a claimant with a number: {without:.0f} bytes")
                await counters.delete("seats")
            for state, figure in (await grown(counters, size, hold=True, claimants=claimants)).items():
                print(f"\n{url.partition(':')[0]}: a hold {request.node.callspec.id}, {state}: {figure:.0f} bytes")
                assert figure - without <= MOST

    asyncio.run(main())
