"""The exactness audit: many clients at once claim all there is, and every answer is held against the limits as set."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

from loadtests.rig.clients import Call, Client, History, hammer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadtests.rig.clients import Address
    from loadtests.running import Elsewhere, Running

#: Counters of the service with their limits: all different, so that an answer about another counter shows.
COUNTERS = {f"audit-{number}": 1_201 + 37 * number for number in range(8)}
SIZES = range(1, 9)
#: Clients at once, each on one kept connection; a third of them with idempotency keys.
CLIENTS, KEYED = 24, 8
#: Claims of all sizes, of which about two thirds find room.
CLAIMS = 3_000
#: Keys that are sent once more.
REPEATS = 64
#: Of an application that has no counters but one: claims for each number, to see overselling by a factor of 30.
CLAIMS_PER_NUMBER = 40


@dataclass
class Audit:
    """What clients were told, in sums, beside the limits as they were set and what the counters read afterwards."""

    limits: dict[str, int]
    readings: dict[str, Any]
    admitted: int = 0
    distinct: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def limit(self) -> int:
        return sum(self.limits.values())

    @property
    def verdict(self) -> str:
        return "; ".join(self.faults) or "exact"


def judge(history: History, limits: Mapping[str, int], readings: Mapping[str, Any]) -> Audit:
    """Hold a history that ended with a refusal on each counter against the limits; no fault may have been injected."""
    audit = Audit(dict(limits), dict(readings))
    for counter, limit in limits.items():
        calls = history.of(counter)
        owned = calls.owned()
        audit.admitted += len(owned)
        audit.distinct += len(set(owned))
        audit.refused += calls.statuses().get(429, 0)
        audit.faults += [f"{counter}: {fault}" for fault in _faults(calls, owned, limit, readings.get(counter))]
    return audit


def _faults(history: History, owned: list[int], limit: int, reading: Any) -> list[str]:
    told = [call for call in history.calls if call.status in (200, 429)]
    others = {status: count for status, count in history.statuses().items() if status not in (200, 429)}
    twice = len(owned) - len(set(owned))
    over = sum(number > limit for number in owned)
    missing = limit - len({number for number in owned if 1 <= number <= limit})
    early = sum(call.status == 429 and call.body["request_count"] + call.n <= limit for call in told)
    limits = sorted({call.body["limit"] for call in told} - {limit})
    found = {
        f"{sum(others.values())} failed answers ({', '.join(f'status {status}' for status in others)})": others,
        f"oversold by {len(owned) - limit}": len(owned) > limit,
        f"undersold by {limit - len(owned)}": len(owned) < limit,
        f"{twice} numbers given twice": twice,
        f"{over} numbers over the limit": over,
        f"{missing} numbers given to nobody": missing,
        f"{early} refused while there was room": early,
        f"the limit is {limit}, answers say {limits}": limits,
        f"it reads {reading}": reading is None or reading.get("count") != limit or reading.get("limit") != limit,
        "no claim was refused in the end": not any(call.status == 429 for call in told),
    }
    return [text for text, is_so in found.items() if is_so]


async def claim_all(server: int | Address, limits: Mapping[str, int], seed: int = 1) -> History:
    """Claim in all sizes from all counters at once, some with keys and some of these again; then one by one until
    every counter has refused."""
    draw = random.Random(seed)
    history = History()
    paths = [f"/counters/{name}" for name in limits]
    plain, keyed = ([draw.choice(SIZES) for _ in range(CLAIMS // CLIENTS * clients)] for clients in (16, 8))
    await asyncio.gather(
        hammer(server, CLIENTS - KEYED, plain, draw.sample(paths, len(paths)), history=history),
        hammer(server, KEYED, keyed, draw.sample(paths, len(paths)), keys=True, history=history),
    )
    await _again(server, history)
    await asyncio.gather(*(_until_refused(server, name, history) for name in limits for _ in range(2)))
    return history


async def _again(server: int | Address, history: History) -> None:
    """The same keys get the same answers: an admission that differs is an owner of other numbers."""
    client = Client(server)
    calls = [call for call in history.calls if call.key is not None and call.status == 200]
    for call in calls[:REPEATS]:
        path = f"/counters/{call.counter}?n={call.n}"
        status, body = await client.request(path, Idempotency_Key=call.key or "")
        history.calls.append(Call(call.n, status, body, call.key, call.counter))
    client.close()


async def _until_refused(server: int | Address, counter: str, history: History) -> None:
    """Single claims; no more of them than a counter could hold ten times."""
    client = Client(server)
    for _ in range(20_000):
        try:
            status, body = await client.request(f"/counters/{counter}")
        except (OSError, asyncio.IncompleteReadError):
            status, body = 0, None
        history.calls.append(Call(1, status, body, None, counter))
        if status != 200:
            break
    client.close()


async def _of_one(at: Address, limit: int) -> History:
    """Of an application that knows `GET /` alone."""
    claims = repeat(1, CLAIMS_PER_NUMBER * limit)
    history = History()

    async def run() -> None:
        client = Client(at)
        for size in claims:
            try:
                status, body = await client.request("/", "GET")
            except (OSError, asyncio.IncompleteReadError, ValueError):
                status, body = 0, None
            history.calls.append(Call(size, status, body))
        client.close()

    await asyncio.gather(*(run() for _ in range(CLIENTS + KEYED)))
    return history


def audit(running: Running | Elsewhere) -> Audit:
    """Of a contender that has counted nothing yet. Raises ContenderError where its counters can't be set or read."""
    if running.contender.has_counters:
        for name, limit in COUNTERS.items():
            running.put(name, limit)
        history = asyncio.run(claim_all(running.at, COUNTERS))
        return judge(history, COUNTERS, {name: running.read(name) for name in COUNTERS})
    history = asyncio.run(_of_one(running.at, running.limit))
    limits = {"default": running.limit}
    return judge(history, limits, {name: running.read(name) for name in limits})


async def _read(at: Address, times: int) -> None:
    client = Client(at)
    try:
        for _ in range(times):
            await client.request("/counters/default", "GET")
    except (OSError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        client.close()


def warm_up_reading(at: Address) -> None:
    """Bring every layer of an application to temperature without counting: 32 connections read the counter."""

    async def read() -> None:
        await asyncio.gather(*(_read(at, 20) for _ in range(32)))

    asyncio.run(read())
