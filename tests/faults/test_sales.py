"""A sale with holds and claimants under faults, and windows under full load: exact, and nothing is left behind."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.judge import records, tail
from loadtests.rig.load import ADMIN, Load
from loadtests.rig.sale import EACH, Sale
from loadtests.rig.victims import PostgresVictim, RedisVictim, kill_a_worker
from loadtests.rig.waiting import wait_until
from pythonricing.counting.model import (
    KEY_SECONDS,
    RECEIPT_SECONDS,
    RESOLVED_SECONDS,
    TOMBSTONE_SECONDS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.clients import Call
    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim

DAY = 86_400


def put(service: Service, name: str, **rules: Any) -> None:
    status, body = service.get(f"/counters/{name}", "PUT", json.dumps(rules).encode(), **ADMIN)
    assert status in (200, 201), body


# What is abandoned expires and is sold again, some of it three times, which takes some seconds.
@pytest.mark.parametrize(
    ("buyers", "seats", "workers", "hold"),
    [
        pytest.param(300, 30, 4, 1, id="300-buyers"),
        pytest.param(5_000, 500, 16, 2, id="5000-buyers", marks=pytest.mark.slow),
    ],
)
def test_a_sale_in_which_a_third_abandons_sells_every_number_and_nobody_more_than_the_limit_of_each(
    buyers: int, seats: int, workers: int, hold: int, victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    running = service(victim.proxied(proxy), "/readyz", workers=workers, store_timeout=20)
    put(running, "seats", limit=seats, each=EACH)
    sale = Sale(running, "seats", buyers, hold)
    for part in (8, 4, 3):
        sale.wait_for(seats // part)
        proxy.set("cut")
        proxy.wait_for_a_lost_reply()
        proxy.set("pass")
        victim.drop_connections()
        if part == 4:
            kill_a_worker(running)
    sale.join()
    status, counter = running.get("/counters/seats")
    told = f"{sale.sold} sold, {sale.abandoned} abandoned, {sale.late} late\n{tail(running)}"
    assert (status, sale.wrong) == (200, []), told
    numbers = sorted(number for owned in sale.owned.values() for number in owned)
    assert (len(numbers), len(set(numbers))) == (seats, seats), told
    assert max(map(len, sale.owned.values())) <= EACH
    assert (counter["count"], counter["halted"], "held" in counter) == (seats, True, False)
    assert sale.abandoned > 0
    # What passed the limit was given back before.
    assert numbers[-1] <= seats + counter["given_back"]
    left_behind(victim, running, sale)


def left_behind(victim: Victim, running: Service, sale: Sale) -> None:
    """See that the store keeps what docs/protocol.md says, for as long as it says, and nothing else."""
    state = PostgresState(victim) if isinstance(victim, PostgresVictim) else RedisState(victim)
    shares = {buyer: len(owned) for buyer, owned in sale.owned.items()}
    assert state.shares() == shares
    assert state.holds() > 0
    assert state.unknown() == []
    # A day later nothing is known of holds.
    state.pass_a_day()

    def forgotten() -> bool:
        assert running.get("/counters/seats")[1]["count"] == sum(shares.values())
        state.sweep()
        return state.holds() == 0

    wait_until(forgotten, "resolved holds to be forgotten")
    assert state.shares() == shares
    # And after a deletion nothing of anybody.
    assert running.get("/counters/seats", "DELETE", **ADMIN)[0] == 204
    state.sweep()
    assert (state.shares(), state.tombstone()) == ({}, True)
    assert state.unknown() == []


class RedisState:
    """What a Redis or Valkey keeps of the counter `seats`."""

    FIELDS = frozenset(["count", "limit", "most", "epoch", "revision", "base", "moved", "version", "sale"])
    KEY = "pythonricing:{seats}"

    def __init__(self, victim: Victim) -> None:
        assert isinstance(victim, RedisVictim)
        self._run = victim.server.run

    def _hash(self) -> dict[str, str]:
        words = self._run("HGETALL", self.KEY)
        return dict(zip(words[::2], words[1::2], strict=True))

    def shares(self) -> dict[str, int]:
        return {field[4:]: int(share) for field, share in self._hash().items() if field.startswith("for:")}

    def holds(self) -> int:
        """How many there are, each of which has one place in the heap."""
        fields = self._hash()
        holds = {field[5:] for field in fields if field.startswith("hold:")}
        heap = [text.split()[1] for field, text in fields.items() if field.startswith("heap:")]
        assert sorted(heap) == sorted(holds)
        return len(holds)

    def unknown(self) -> list[str]:
        """What the pages don't know."""
        now, found = time.time(), []
        for field, text in self._hash().items():
            kind = field.partition(":")[0]
            if kind == "hold":
                outcome, _, until, *_ = text.split()
                if outcome == "held" or not now < int(until) <= now + RESOLVED_SECONDS + 1:
                    found.append(f"{field} {text}")
            elif kind not in ("heap", "chunk", "for") and field not in self.FIELDS | {"deleted"}:
                found.append(f"{field} {text}")
        for key in self._run("KEYS", "*"):
            *_, kind = key.removeprefix("pythonricing:{seats}").removeprefix("pythonricing:{default}").split(":")[:2]
            seconds = {"key": KEY_SECONDS, "receipt": RECEIPT_SECONDS, "word": RECEIPT_SECONDS}.get(kind)
            if key in ("pythonricing:counters", "pythonricing:probe", self.KEY, "pythonricing:{default}"):
                continue
            if seconds is None or not 0 < self._run("TTL", key) <= seconds:
                found.append(key)
        return found

    def pass_a_day(self) -> None:
        """Make every moment of a hold a day and a second earlier."""
        fields = self._hash()
        changed: list[str] = []
        for field, text in fields.items():
            words = text.split()
            place = {"heap": 0, "hold": 2, "sale": 2}.get(field.partition(":")[0])
            if place is not None:
                words[place] = str(int(words[place]) - DAY - 1)
                changed += (field, " ".join(words))
        self._run("HSET", self.KEY, *changed)

    def sweep(self) -> None:
        """Nothing waits to be removed."""

    def tombstone(self) -> bool:
        fields = self._hash()
        left = {field for field in fields if field not in self.FIELDS}
        return left == {"deleted"} and 0 < self._run("TTL", self.KEY) <= TOMBSTONE_SECONDS


class PostgresState:
    """What a PostgreSQL keeps of it."""

    def __init__(self, victim: PostgresVictim) -> None:
        self._sql = victim.server.sql

    def shares(self) -> dict[str, int]:
        return dict(self._sql("SELECT claimant, share FROM pythonricing.claimant WHERE name = 'seats'"))

    def holds(self) -> int:
        return int(self._sql("SELECT count(*) FROM pythonricing.hold")[0][0])

    def unknown(self) -> list[str]:
        found = []
        for table, rule in (
            ("counter", "name IN ('seats', 'default')"),
            ("receipt", f"expires <= now() + interval '{RECEIPT_SECONDS} seconds'"),
            ("key", f"expires <= now() + interval '{KEY_SECONDS} seconds'"),
            ("hold", f"outcome IS NOT NULL AND due <= extract(epoch FROM now()) + {RESOLVED_SECONDS + 1}"),
            *((table, "epoch = (SELECT c.epoch FROM pythonricing.counter c WHERE c.name = row.name)")
              for table in ("given_back", "owner", "claimant")),
            ("installation", "only_row"),
        ):  # fmt: skip
            rows = self._sql(f"SELECT row::text FROM pythonricing.{table} row WHERE NOT ({rule})")
            found += [f"{table} {text}" for (text,) in rows]
        tables = {name for (name,) in self._sql("SELECT tablename FROM pg_tables WHERE schemaname = 'pythonricing'")}
        known = {"counter", "receipt", "key", "hold", "given_back", "owner", "claimant", "installation"}
        return found + sorted(tables - known)

    def pass_a_day(self) -> None:
        self._sql(f"UPDATE pythonricing.hold SET due = due - {DAY + 1}")

    def sweep(self) -> None:
        """What every worker does about once a minute."""
        while self._sql("CALL pythonricing.sweep(10000, 1000, 0, NULL, NULL)") != [("OK", ["0"])]:
            pass

    def tombstone(self) -> bool:
        limit = f"now() + interval '{TOMBSTONE_SECONDS} seconds'"
        rows = self._sql(f"SELECT deleted_until <= {limit} FROM pythonricing.counter WHERE name = 'seats'")
        owned = self._sql("SELECT name FROM pythonricing.owner UNION SELECT name FROM pythonricing.given_back")
        return (rows, owned) == ([(True,)], [])


@pytest.mark.parametrize(
    ("seconds", "limit", "lease"),
    [
        pytest.param(3, 1_000, 0.01, id="3-s"),
        pytest.param(20, 1_000, 0.01, id="20-s", marks=pytest.mark.slow),
        # It never gets there, so that leases are out when a window ends.
        pytest.param(20, 1_000_000, 0.1, id="20-s-with-leases", marks=pytest.mark.slow),
    ],
)
def test_a_counter_that_renews_every_second_gives_no_number_twice_in_a_window_under_full_load(
    seconds: int, limit: int, victim: Victim, service: Callable[..., Service]
) -> None:
    running = service(victim.url, "/readyz", workers=4, store_timeout=20)
    put(running, "second", limit=limit, every="1s")
    load = Load(running, counters=["second"], clients=64)
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, "the windows to pass")
    history = load.stop()
    assert set(history.statuses()) == ({200, 429} if limit == 1_000 else {200})
    windows = windows_of([call for call in history.calls if call.status == 200])
    assert len(windows) > 1
    assert {number for numbers in windows.values() for number in numbers} <= set(range(1, limit + 1))
    # Nobody was told of more than the workers have given.
    given = sum(map(len, windows.values()))
    wait_until(
        lambda: sum(r["extra"]["n"] for r in records(running, "request_count")) == given, "every line of the log"
    )


def windows_of(calls: list[Call]) -> dict[int, set[int]]:
    """The numbers that were given in each window, by its second.

    The store's clock is this machine's, and a claim was admitted between the moments in which it was sent and answered.
    Where a window ended between these, it is of the earliest one in which nobody else has its number. Fails if there is
    none. So as many as there are numbers are in a window, at most.
    """
    windows: dict[int, set[int]] = {}
    clock = time.time() - time.monotonic()
    for call in sorted(calls, key=lambda call: call.at):
        for number in call.numbers:
            ours = range(int(clock + call.sent), int(clock + call.at) + 1)
            free = next((at for at in ours if number not in windows.get(at, ())), None)
            assert free is not None, f"number {number} twice in the window of second {ours[-1]}"
            windows.setdefault(free, set()).add(number)
    return windows
