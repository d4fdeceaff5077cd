"""What holds, keys and windows are held to on every store, where its clock has to go on."""

from __future__ import annotations

import asyncio
import uuid
import zoneinfo
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import msgspec
import pytest
from click.testing import CliRunner

from loadtests.rig.postgres import PostgresServer, postgres_programs
from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.waiting import PATIENCE
from pythonricing.counting import windows
from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import MAX_DUE, Rules, StoreRejected, StoreUnavailable, Wish, ZoneUnknown
from pythonricing.serve.commands import COMMANDS
from pythonricing.telemetry.events import Event
from tests.stores.support import batch, opened, word
from tests.web.support import ADMIN, TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from loadtests.rig.service import Service
    from pythonricing.counting.model import Counter, Verdict
    from pythonricing.counting.store import Store


@pytest.fixture(scope="module", params=["memory", *redis_programs(), *postgres_programs()], ids=str)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of each store in turn."""
    if request.param == "memory":
        yield "memory://"
        return
    server: RedisServer | PostgresServer
    if request.param in postgres_programs():
        server = PostgresServer(request.param, fsync="off").start()
    else:
        server = RedisServer(tmp_path_factory.mktemp("store"), request.param, "--appendfsync", "no").start()
    yield server.url
    server.stop()


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Path]:
    """A folder that has all the time zones that there are."""
    zoneinfo.reset_tzpath([str(tmp_path)])
    forget_zones()
    yield tmp_path
    zoneinfo.reset_tzpath()
    forget_zones()


def forget_zones() -> None:
    zoneinfo.ZoneInfo.clear_cache()
    windows._zone.cache_clear()


def add_zone(zones: Path, name: str, offset: int) -> None:
    """Add a time zone that is so many seconds ahead of UTC."""
    counts = (0, 0, 0, 0, 1, 4)
    numbers = b"".join(count.to_bytes(4, "big") for count in counts)
    (zones / name).write_bytes(b"TZif" + bytes(16) + numbers + offset.to_bytes(4, "big", signed=True) + b"\0\0ZON\0")


@asynccontextmanager
async def sale(url: str, name: str, limit: int, **rules: Any) -> AsyncIterator[Store]:
    async with opened(url) as store:
        await store.put(name, word(), limit, Rules(**rules))
        yield store


async def pass_time(store: Store, name: str, moment: float) -> None:
    """Wait until the store's clock has come to a moment, in seconds."""
    while (left := moment - await store.clock(name) / 1e6) > 0:  # noqa: ASYNC110
        await asyncio.sleep(left)


async def claim(store: Store, name: str, sequence: int, size: int, key: str, hold: str = "") -> Verdict:
    wishes = [Wish(hold, 60)] if hold else None
    return await store.claim(batch(name, sequence, size, keys=[key], wishes=wishes))


def test_a_key_of_an_earlier_window_is_that_of_this_one(url: str, name: str) -> None:
    async def scenario() -> None:
        async with sale(url, name, 2, every="1s") as store:
            first = await claim(store, name, 1, 2, "admitted", "hold-1")
            for sequence in (100, 200):
                read = await store.read(name)
                await pass_time(store, name, read.ends / 1e6)
                verdict = await claim(store, name, sequence, 2, "admitted", "hold-2")
                assert verdict.epoch > first.epoch
                assert verdict.issued == 0
                assert verdict.replays[0] is not None
                assert verdict.replays[0].hold == "hold-1"
            resolution, _ = await store.resolve(name, word(), "hold-1", "confirm")
            assert resolution is not None
            assert resolution.numbers == ((1, 2),)
            # And after an operator has had it renew no longer.
            await store.put(name, word(), 2, Rules(every=""))
            verdict = await claim(store, name, 300, 2, "admitted", "hold-3")
            assert verdict.replays[0] is not None
            await store.put(name, word(), 2, how="restart")
            assert (await claim(store, name, 301, 2, "admitted", "hold-3")).replays == [None]

    asyncio.run(scenario())


def test_a_refusal_is_not_remembered_in_the_next_window(url: str, name: str) -> None:
    async def scenario() -> None:
        async with sale(url, name, 1, every="1s") as store:
            refused = 0
            for sequence in range(1, 100):
                await pass_time(store, name, (await store.read(name)).ends / 1e6)
                await store.claim(batch(name, 2 * sequence, 1))
                verdict = await claim(store, name, 2 * sequence + 1, 1, "late")
                if not verdict.runs:
                    refused = verdict.epoch
                    break
            assert refused
            await pass_time(store, name, verdict.ends / 1e6)
            verdict = await claim(store, name, 1000, 1, "late")
            assert verdict.epoch > refused
            assert verdict.replays == [None]
            assert list(verdict.runs) == [(1, 1)]

    asyncio.run(scenario())


def test_a_refusal_is_remembered_only_once_no_hold_can_make_room(url: str, name: str) -> None:
    async def scenario() -> None:
        async with sale(url, name, 4) as store:
            await claim(store, name, 1, 2, "held", "hold-1")
            await store.claim(batch(name, 2, 2))
            for sequence in (3, 4):
                verdict = await claim(store, name, sequence, 1, "late")
                assert verdict.runs == []
                assert verdict.replays == [None]
            # One that no hold can make room for is final.
            assert (await claim(store, name, 5, 3, "large")).replays == [None]
            assert (await claim(store, name, 6, 3, "large")).replays != [None]
            await store.resolve(name, word(), "hold-1", "release")
            verdict = await claim(store, name, 7, 1, "late")
            assert list(verdict.runs) == [(5, 5)]
            assert (await claim(store, name, 8, 1, "late")).replays[0] is not None

    asyncio.run(scenario())


def test_a_share_that_holds_may_make_room_in_is_no_final_refusal(url: str, name: str) -> None:
    async def scenario() -> None:
        async with sale(url, name, 10, each=2) as store:

            async def ask(sequence: int, hold: str = "") -> Verdict:
                wish = Wish(hold, 60 if hold else 0, "alice")
                keys = None if hold else ["late"]
                return await store.claim(batch(name, sequence, 2, keys=keys, wishes=[wish]))

            await ask(1, "hold-1")
            assert [(await ask(sequence)).replays for sequence in (2, 3)] == [[None], [None]]
            await store.resolve(name, word(), "hold-1", "release")
            assert list((await ask(4)).runs) == [(3, 4)]

    asyncio.run(scenario())


def test_whoever_reads_or_lists_finds_all_numbers_back_whose_holds_have_expired(url: str, name: str) -> None:
    held = 3 * MAX_DUE + 1

    async def scenario() -> None:
        async with sale(url, name, 1000) as store, sale(url, f"{name}-too", 1000):
            if url == "memory://":
                await store.put(f"{name}-too", word(), 1000)
            names = (name, f"{name}-too")
            wishes = [Wish(f"hold-{number}", 1) for number in range(held)]
            for each in names:
                verdict = await store.claim(batch(each, 1, *[1] * held, wishes=wishes))
            await pass_time(store, name, verdict.due)
            read = await store.read(name)
            listed = {counter.name: counter for counter in await store.browse(1000)}[names[1]]
            for counter in (read, listed):
                assert (counter.count, counter.held, counter.given_back, counter.leased) == (0, 0, held, 0)
                assert counter.expired == held
            if url == "memory://":
                return
            # A word finds those that it is not about as they are; none of them is on a lease.
            wishes = [Wish(f"more-{number}", 1) for number in range(held)]
            verdict = await store.claim(batch(name, 3, *[1] * held, wishes=wishes))
            await pass_time(store, name, verdict.due)
            resolution, counter = await store.resolve(name, word(), "more-1", "confirm")
            assert resolution is not None
            assert resolution.outcome == "expired"
            assert counter.held > 0
            assert counter.leased == 0

    asyncio.run(scenario())


class Failures(Journal):
    def __init__(self) -> None:
        self.failures: list[str] = []

    def failed(self, name: str, error: Exception) -> None:
        self.failures.append(f"{name}: {error}")


async def claimed_before_midnight(counters: Counters, store: Store, name: str, zones: Path) -> Counter:
    """A counter of which 3 numbers are taken and whose day ends soon, however slow this machine is."""
    seconds = 2
    while True:
        second = await store.clock(name) // 1_000_000
        zone = f"Soon-{seconds}"  # where it is midnight in so many seconds
        add_zone(zones, zone, (-second - seconds + 43_200) % 86_400 - 43_200)
        await counters.put(name, 10, every="day", zone=zone)
        await counters.claim(name, 3)
        counter = await counters.read(name)
        if counter.count == 3 and counter.ends == (second + seconds) * 1_000_000:
            return counter
        await counters.delete(name)
        seconds *= 2


def test_a_zone_that_this_machine_does_not_know_keeps_claims_from_its_counter_only(
    url: str, name: str, zones: Path
) -> None:
    journal, runner = Failures(), CliRunner()

    async def scenario() -> None:
        async with opened(url) as store:
            counters = Counters(store, journal)
            await counters.open()
            await counters.put(f"{name}-other", 10)
            before = await claimed_before_midnight(counters, store, name, zones)
            zone = zones / before.zone
            known = zone.read_bytes()
            zone.unlink()
            forget_zones()
            await pass_time(store, name, before.ends / 1e6)
            with pytest.raises(StoreUnavailable, match=f"no time zone '{zone.name}'"):
                await counters.claim(name)
            for act in (
                counters.read(name),
                counters.give_back(name, [(1, 1)]),
                counters.confirm(name, "h" * 22),
                counters.delete(name),
                counters.restart(name),
            ):
                with pytest.raises(ZoneUnknown, match=f"no time zone '{zone.name}'"):
                    await act
            assert set(journal.failures) == {f"{name}: {ZoneUnknown(zone.name)}"}
            listed = {counter.name: counter for counter in await counters.browse(1000)}
            assert (listed[name].count, listed[name].ends, listed[name].zone) == (3, before.ends, zone.name)
            assert listed[f"{name}-other"].count == 0
            if url != "memory://":
                text = f"pythonricing: {ZoneUnknown(zone.name)}\n"
                for command in ("status", "reset"):
                    result = await asyncio.to_thread(runner.invoke, COMMANDS[command], [name, "--store", url])
                    assert (result.exit_code, result.output) == (2, text)
                result = await asyncio.to_thread(runner.invoke, COMMANDS["list"], ["--store", url])
                assert result.exit_code == 0
                assert name in result.output
            assert (await counters.claim(f"{name}-other")).admitted
            # Once its zone is known again, it goes on.
            zone.write_bytes(known)
            assert (await counters.claim(name, 2)).request_count == 2
            await counters.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert issubclass(ZoneUnknown, StoreRejected)


@pytest.mark.parametrize("url", [*redis_programs(), *postgres_programs()], indirect=True, ids=str)
def test_a_service_that_does_not_know_a_counter_s_zone_answers_503_for_it_and_shows_the_others(
    url: str, name: str, zones: Path, service: Callable[..., Service]
) -> None:
    async def scenario() -> str:
        async with opened(url) as store:
            counters = Counters(store, Journal())
            await counters.open()
            before = await claimed_before_midnight(counters, store, name, zones)
            await counters.put(f"{name}-other", 10)
            await pass_time(store, name, before.ends / 1e6)
            await counters.close()
            return before.zone

    zone = asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    api = service(url, wait_for="/readyz", admin_token=TOKEN)
    for method, path, body in (
        ("POST", "", b""),
        ("GET", "", b""),
        ("PUT", "", b'{"limit": 5}'),
        ("DELETE", "", b""),
        ("DELETE", "/numbers/1-1", b""),
    ):
        status, problem = api.get(f"/counters/{name}{path}", method, body, **ADMIN)
        assert (status, problem.get("type", "")[-17:]) == (503, "store-unavailable"), (method, path, problem)
        assert f"no time zone '{zone}'" in problem["detail"]
    assert api.get(f"/counters/{name}-other", "POST")[1]["request_count"] == 1
    listed = {counter["name"]: counter for counter in api.get("/counters", **ADMIN)[1]["counters"]}
    assert (listed[name]["count"], listed[name]["zone"]) == (3, zone)
    with urlopen(f"http://127.0.0.1:{api.port}/metrics", timeout=PATIENCE) as told:
        assert f'pythonricing_state_lost{{counter="{name}-other"}} 0.0' in told.read().decode()
    with urlopen(f"http://127.0.0.1:{api.port}/watch/events", timeout=PATIENCE) as told:
        first = next(line for line in told if line.startswith(b"data: "))
    shown = {counter.name: counter.count for counter in msgspec.json.decode(first[6:], type=Event).counters}
    assert (shown[name], shown[f"{name}-other"]) == (3, 1)
