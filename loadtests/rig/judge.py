"""The judge of what clients were told: held against the store's final counts and the services' logs."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.counting.lease import BUSY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from loadtests.rig.clients import History
    from loadtests.rig.service import Service


def records(service: Service, what: str) -> list[dict[str, Any]]:
    """The records of a service's log that carry this word in their `extra`: request_count, orphaned, in_doubt, …."""
    return [record for record in service.log() if what in record["extra"]]


def numbers_of_workers(*services: Service) -> dict[tuple[int, str], list[int]]:
    """The numbers that each worker has given of each counter, by its process id and the counter's name."""
    numbers: dict[tuple[int, str], list[int]] = defaultdict(list)
    for service in services:
        for record in records(service, "request_count"):
            extra = record["extra"]
            last = extra["request_count"]
            for first, end in extra.get("numbers", [(last - extra["n"] + 1, last)]):
                numbers[record["process"]["id"], extra["counter"]].extend(range(first, end + 1))
    return numbers


def workers(service: Service) -> set[int]:
    """The processes that have admitted claims."""
    return {record["process"]["id"] for record in records(service, "request_count")}


def orphans(service: Service, counter: str = "default") -> set[int]:
    """The numbers that the service has logged as admitted to nobody."""
    extras = [record["extra"] for record in records(service, "orphaned")]
    mine = [extra for extra in extras if extra["counter"] == counter]
    return {number for e in mine for number in range(e["orphaned"] - e["n"] + 1, e["orphaned"] + 1)}


def judge(
    history: History,
    service: Service,
    *others: Service,
    limit: int,
    statuses: Collection[int],
    killed: bool = False,
) -> None:
    """Judge each counter of a history by itself; explain what doesn't fit.

    As many numbers as the store counts belong to one claim each, or are logged as orphaned, once every lease has come
    back; as many as claims were given up as in doubt, or, where a worker was `killed`, as claims were left without an
    answer and as one lease may hold, may belong to nobody. A worker that isn't connected again yet accounts for its
    last batch once it is. `limit` is each counter's, `others` are services on the same store.
    """
    for counter in history.counters():
        _judge(counter, history.of(counter), [service, *others], limit, statuses, killed)


def _judge(
    counter: str, history: History, services: list[Service], limit: int, statuses: Collection[int], killed: bool
) -> None:
    owned = history.owned()
    owners = set(owned)
    lease = max(float(service.environment.get("PYTHONRICING_LEASE", "0.01")) for service in services)
    in_flight = 0
    if killed:
        in_flight = sum(call.n for call in history.calls if call.status == 0) + int(BUSY * lease)

    def account() -> tuple[int, set[int], int, int]:
        count = count_of(services[0], counter)
        orphaned = set().union(*(orphans(service, counter) for service in services))
        doubts = [record["extra"] for service in services for record in records(service, "in_doubt")]
        in_doubt = sum(extra["in_doubt"] for extra in doubts if extra["counter"] == counter)
        return count, orphaned, count - len(owners | orphaned), in_flight + in_doubt

    deadline = time.monotonic() + PATIENCE / 4
    count, orphaned, nobodys, allowed = account()
    while nobodys > allowed and time.monotonic() < deadline:
        time.sleep(0.1)
        count, orphaned, nobodys, allowed = account()
    faults = {
        "answers of another kind": {s: n for s, n in history.statuses().items() if s not in statuses},
        "numbers with two owners": sorted({number for number, after in pairwise(owned) if number == after}),
        # Numbers are given in order where none is taken ahead.
        "numbers above the store's count": [] if lease else sorted(n for n in owners | orphaned if n > count),
        "numbers above the limit": sorted(n for n in owners | orphaned if n > limit),
        "numbers that the store counts as free": [-nobodys] if nobodys < 0 else [],
        "numbers that belong to nobody": [nobodys] if nobodys > allowed else [],
        "admitted over the limit": owned[limit:],
        "the count is over the limit": [count] if count > limit else [],
    }
    verdict = {what: found for what, found in faults.items() if found}
    assert not verdict, (
        f"{counter}: {verdict}\nhistory: {history.summary()}\nlimit {limit}, count {count}, owned {len(owners)}, "
        f"orphaned {len(orphaned)}, nobody's {nobodys}, of which may be {allowed}\n{tail(services[0])}"
    )


def tail(service: Service, lines: int = 20) -> str:
    """The last unusual lines of the service's log."""
    rare = [r for r in service.log() if "request_count" not in r["extra"]]
    return "\n".join(
        f"{r['time']['repr']} {r['process']['id']} {r['level']['name']} {r['message']}" for r in rare[-lines:]
    )


def count_of(service: Service, name: str = "default") -> int:
    """The counter as the service reads it, once it can."""
    status, body = wait_until(
        lambda: (answer := service.get(f"/counters/{name}"))[0] == 200 and answer, f"counter {name} to be readable"
    )
    assert status == 200
    count: int = body["count"]
    return count


def wait_for_leases(service: Service, counters: Iterable[str]) -> None:
    """Wait until the store counts just the numbers that the service has given: what it took ahead has come back."""

    def back(counter: str) -> bool:
        given = sum(len(numbers) for (_, name), numbers in numbers_of_workers(service).items() if name == counter)
        return count_of(service, counter) == given + len(orphans(service, counter))

    for counter in counters:
        wait_until(partial(back, counter), f"every lease of {counter} to come back")
