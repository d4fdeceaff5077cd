"""The store on a cluster: real nodes, slots that move, shards that fail."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import Answer, StoreError, StoreUnavailable, StoreURLError
from pythonricing.counting.store import trouble
from pythonricing.stores import create_store
from pythonricing.stores.redis.routes.cluster import NOBODY
from tests.serve.commands import run
from tests.stores.support import (
    assert_once_each,
    batch,
    calls,
    claim_steadily,
    connected,
    in_the_end,
    links,
    opened,
    persist,
    until,
    word,
)
from tests.support import Silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from loadtests.rig.cluster import ClusterServers
    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


def names_by_owner(servers: ClusterServers) -> dict[RedisServer, str]:
    """A counter's name for each master."""
    found: dict[RedisServer, str] = {}
    for number in range(1000):
        found.setdefault(servers.owner_of(servers.slot_of(f"c{number}")), f"c{number}")
        if len(found) == 3:
            return found
    raise AssertionError("a master without counters")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+cluster://u:secret@a:1/0", "a cluster has no databases or services"),
        ("redis+cluster://u:secret@a:1?db=2", "a cluster has no databases"),
        ("redis+cluster://u:secret@", "servers are named like host:port,host:port"),
        ("redis+cluster://u:secret@a:1,:2", "servers are named like host:port,host:port"),
        ("redis+cluster://u:secret@a:99999", "Port out of range"),
        ("redis+cluster://a:1?password=secret&nonsense=1", "nonsense"),
    ],
)
def test_a_url_that_cant_be_used_is_one_clear_line_without_its_password(url: str, complaint: str) -> None:
    with pytest.raises(StoreURLError) as error:
        create_store(url, 1.0)
    line = str(error.value)
    assert complaint in line
    assert "\n" not in line
    assert "secret" not in line


def test_ten_thousand_counters_are_spread_over_the_shards(clusters: Callable[..., ClusterServers]) -> None:
    servers = clusters("--appendfsync", "no")

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 60.0), Silence(), timeout=60.0)
        await counters.open()
        names = [f"seats-{number}" for number in range(10_000)]
        await asyncio.gather(*(counters.put(name, 1) for name in names))
        before = [calls(server, "evalsha") for server in servers.servers]
        for first in range(0, len(names), 5000):  # a worker holds no more claims than that
            answers = await asyncio.gather(*(counters.claim(name) for name in names[first : first + 5000]))
            assert {(answer.admitted, answer.request_count) for answer in answers} == {(True, 1)}
        shares = [calls(server, "evalsha") - was for server, was in zip(servers.servers, before, strict=True)]
        assert sum(shares) == 10_000
        assert min(shares) > 3000
        # One connection of the worker to each shard.
        for server in servers.servers:
            assert server.run("CLIENT", "LIST").count("name=pythonricing-") == 1
        await counters.close()

    asyncio.run(scenario())


def test_claims_go_on_while_their_slot_moves(clusters: Callable[..., ClusterServers], program: str) -> None:
    servers = clusters(program=program)
    slot = servers.slot_of("seats")
    source = servers.owner_of(slot)
    target = next(server for server in servers.servers if server is not source)

    async def scenario() -> None:
        workers = [Counters(create_store(servers.url, 20.0), Silence(), timeout=20.0) for _ in range(2)]
        for worker in workers:
            await worker.open()
        await workers[0].put("seats", 1_000_000)
        answers: list[Answer | Exception] = []

        def move(steps: Iterable[object]) -> None:
            for _ in steps:
                time.sleep(0.05)  # claims that meet a half-moved counter wait, so no answer tells when to go on

        async def more() -> None:
            enough = len(answers) + 20
            await until(lambda: len(answers) > enough)

        tasks = [asyncio.create_task(claim_steadily(worker, answers)) for worker in workers for _ in range(4)]
        for to in (target, source, target):
            steps = servers.migration(slot, to, keys=1)
            await asyncio.to_thread(move, steps)
            await more()
        for task in tasks:
            task.cancel()
        for worker in workers:
            await worker.close()
        assert all(isinstance(answer, Answer) for answer in answers)
        assert_once_each(answers)

    asyncio.run(scenario())


def test_a_receipt_and_the_keys_move_with_their_counter(clusters: Callable[..., ClusterServers], program: str) -> None:
    servers = clusters(program=program)
    slot = servers.slot_of("seats")
    target = next(server for server in servers.servers if server is not servers.owner_of(slot))

    async def scenario() -> None:
        async with opened(servers.url) as store:
            await persist(store, lambda: store.put("seats", word(), 10), "seats")
            sent = batch("seats", 7, 1, 2, keys=["a", None])
            first = await store.claim(sent)
            assert await asyncio.to_thread(servers.migrate, slot, target) == 4  # the receipt of the word too
            assert await store.claim(sent) == first  # MOVED, and sent on at once
            assert (await store.claim(batch("seats", 8, 1, keys=["a"]))).replays[0].count == 1
            assert (await store.read("seats")).count == 3

    asyncio.run(scenario())


def test_a_half_moved_counter_waits_and_a_moved_one_is_asked_for(
    clusters: Callable[..., ClusterServers], program: str
) -> None:
    servers = clusters(program=program)
    slot = servers.slot_of("seats")
    source = servers.owner_of(slot)
    target = next(server for server in servers.servers if server is not source)

    async def scenario() -> None:
        async with opened(servers.url) as store:
            first = word()
            await persist(store, lambda: store.put("seats", first, 10), "seats")
            await store.claim(batch("seats", 1, 1))
            source.run("DEL", f"pythonricing:{{seats}}:receipt:{first.id}")  # as after an hour
            steps = servers.migration(slot, target, keys=1)
            next(steps)
            assert (await store.claim(batch("seats", 2, 1))).before == 1  # all of its keys are still here
            with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                await store.claim(batch("seats", 1, 1, worker="new"))  # its receipt is nowhere
            next(steps)
            with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                await store.claim(batch("seats", 3, 1))
            next(steps)
            assert source.run("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
            assert (await store.claim(batch("seats", 3, 1))).before == 2  # ASK
            with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                await store.put("seats", word(), 20)
            with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                await store.claim(batch("seats", 1, 1, worker="new"))
            assert [*steps]
            assert (await store.put("seats", word(), 20))[0].count == 3
            assert (await store.claim(batch("seats", 1, 1, worker="new"))).before == 3
            assert (await store.claim(batch("seats", 4, 1))).before == 4

    asyncio.run(scenario())


def test_words_wait_for_a_slot_that_moves_and_a_deleted_counter_begins_anew_in_it(
    clusters: Callable[..., ClusterServers], program: str
) -> None:
    """A key that a script deleted couldn't be written again where its slot is leaving."""
    servers = clusters(program=program)
    slot = servers.slot_of("seats")
    target = next(server for server in servers.servers if server is not servers.owner_of(slot))

    async def scenario() -> None:
        async with opened(servers.url) as store:
            await persist(store, lambda: store.put("seats", word(), 10), "seats")
            await store.claim(batch("seats", 1, 4))
            await store.delete("seats", word())
            steps = servers.migration(slot, target)
            next(steps)
            for act in (store.put("seats", word(), 7), store.delete("seats", word())):
                with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                    await act  # its receipt is nowhere
            assert (await store.claim(batch("seats", 2, 1, create=5))).limit == 5
            assert [*steps]
            assert (await store.read("seats")).limit == 5
            await store.delete("seats", word())
            assert (await store.put("seats", word(), 7))[1]

    asyncio.run(scenario())


def test_a_whole_slot_that_moves_at_once_is_followed(clusters: Callable[..., ClusterServers]) -> None:
    servers = clusters()
    slot = servers.slot_of("seats")
    source = servers.owner_of(slot)
    target = next(server for server in servers.servers if server is not source)

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 20.0), Silence(), timeout=20.0)
        await counters.open()
        await in_the_end(lambda: counters.put("seats", 1_000_000))
        answers: list[Answer | Exception] = []
        tasks = [asyncio.create_task(claim_steadily(counters, answers)) for _ in range(4)]
        source.run("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", servers.id_of(target))
        await until(lambda: servers.owner_of(slot) is target)
        before = len(answers)
        await until(lambda: len(answers) > before + 20)
        for task in tasks:
            task.cancel()
        await counters.close()
        assert all(isinstance(answer, Answer) for answer in answers)
        assert_once_each(answers)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["ordered", "killed", "paused"])
def test_claims_follow_a_shard_through_a_failover(
    clusters: Callable[..., ClusterServers], program: str, how: str
) -> None:
    servers = clusters(replicas_each=1, program=program)
    slot = servers.slot_of("seats")
    old = servers.owner_of(slot)

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 2.0, on_loss="raise"), Silence(), timeout=2.0)
        await counters.open()
        await in_the_end(lambda: counters.put("seats", 1_000_000))
        answers: list[Answer | Exception] = []
        tasks = [asyncio.create_task(claim_steadily(counters, answers)) for _ in range(4)]
        await asyncio.sleep(0.3)
        if how == "ordered":
            servers.replicas_of(old)[0].run("CLUSTER", "FAILOVER")
        else:
            old.kill() if how == "killed" else old.pause()
        await asyncio.to_thread(servers.wait_for_failover, slot, old)
        before = len(answers)
        await until(lambda: any(isinstance(answer, Answer) for answer in answers[before:]))
        for task in tasks:
            task.cancel()
        await counters.close()
        assert_once_each(answers)

    asyncio.run(scenario())


def test_replicas_of_a_shard_confirm(clusters: Callable[..., ClusterServers]) -> None:
    servers = clusters("--appendfsync", "everysec", replicas_each=1, node_timeout=3600.0)
    old = servers.owner_of(servers.slot_of("seats"))

    async def scenario() -> None:
        async with opened(servers.url, 2.0, replicas=1) as store:
            await persist(store, lambda: store.put("seats", word(), 10), "seats")
            servers.replicas_of(old)[0].pause()
            with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                await store.claim(batch("seats", 1, 1))
            other = next(name for name in "abcdefgh" if servers.owner_of(servers.slot_of(name)) is not old)
            await persist(store, lambda: store.put(other, word(), 10), other)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_shard_that_is_down_holds_up_no_other(clusters: Callable[..., ClusterServers], how: str) -> None:
    servers = clusters()
    servers.migrate(0, servers.servers[1])  # its slots are no longer one range
    names = names_by_owner(servers)
    down = servers.servers[1]

    async def scenario() -> None:
        store = create_store(servers.url, 2.0)
        counters = Counters(store, Silence(), timeout=2.0)
        await counters.open()
        for name in names.values():
            await in_the_end(partial(counters.put, name, 1_000_000))
            await in_the_end(partial(counters.claim, name))
        down.kill() if how == "killed" else down.pause()
        waiting = asyncio.ensure_future(counters.claim(names[down]))
        for server, name in names.items():
            if server is not down:
                for _ in range(20):
                    assert (await counters.claim(name)).admitted
        with pytest.raises(StoreUnavailable):
            await waiting
        assert (await counters.check()).unreachable == [f"127.0.0.1:{down.port}"]
        shown = {counter.name for counter in await counters.browse(100, reachable_only=True)}
        assert shown == {name for server, name in names.items() if server is not down}
        with pytest.raises(StoreUnavailable):  # a list that looks whole, and isn't, would be believed
            await counters.browse(100)
        down.start() if how == "killed" else down.resume()
        await until(lambda: all(server.connected for server in store.servers()))
        assert (await in_the_end(lambda: counters.claim(names[down]))).request_count >= 2
        assert (await counters.check()).unreachable == []
        await counters.close()

    asyncio.run(scenario())


def test_a_list_waits_for_every_shard(clusters: Callable[..., ClusterServers]) -> None:
    servers = clusters()
    names = set(names_by_owner(servers).values())

    async def scenario() -> None:
        async with opened(servers.url) as store:
            for name in names:
                await store.put(name, word(), 5)
        late = create_store(servers.url, PATIENCE)
        await late.open()
        assert {counter.name for counter in await late.browse(10)} == names
        await late.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_cluster_that_serves_nothing_without_all_its_shards_is_not_ready(
    clusters: Callable[..., ClusterServers],
) -> None:
    servers = clusters("--cluster-require-full-coverage", "yes", node_timeout=0.5)
    names = names_by_owner(servers)

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 1.0), Silence(), timeout=1.0)
        await counters.open()
        for name in names.values():
            await in_the_end(partial(counters.put, name, 10))
        servers.servers[2].kill()
        await until(lambda: "cluster_state:fail" in str(servers.servers[0].ask("CLUSTER", "INFO")))
        await until(lambda: "cluster_state:fail" in str(servers.servers[1].ask("CLUSTER", "INFO")))
        with pytest.raises(StoreUnavailable):
            await counters.claim(names[servers.servers[0]])
        with pytest.raises(StoreUnavailable, match=r"no shard of .* answers: 127\.0\.0\.1:"):
            await counters.check()
        await counters.close()

    asyncio.run(scenario())


def test_slots_that_no_node_serves_are_named_and_served_as_soon_as_one_does(
    clusters: Callable[..., ClusterServers],
) -> None:
    servers = clusters()
    names = names_by_owner(servers)
    missing = servers.slot_of("default")
    owner = servers.owner_of(missing)
    names[owner] = "default"

    async def scenario() -> None:
        patient, impatient = stores = [create_store(servers.url, timeout) for timeout in (PATIENCE, 0.5)]
        counters = Counters(patient, Silence(), timeout=PATIENCE)
        hasty = Counters(impatient, Silence(), timeout=0.5)
        await counters.open()
        await hasty.open()
        for name in names.values():
            await counters.put(name, 10)
        for server in servers.servers:
            server.run("CLUSTER", "DELSLOTS", missing)
        waiting = asyncio.ensure_future(counters.claim("default"))
        with pytest.raises(StoreUnavailable, match="not answer in time"):
            await hasty.claim("default")
        for store in stores:
            await store.ready()
            with contextlib.suppress(StoreError):
                await store.read("default")  # whoever asks for it looks for it
        await until(lambda: [trouble(store) for store in stores] == [NOBODY, NOBODY])
        with pytest.raises(StoreUnavailable, match=NOBODY):
            await hasty.read("default")
        assert (await counters.check()).unreachable == [NOBODY]
        assert {counter.name for counter in await counters.browse(10, reachable_only=True)} == set(names.values()) - {
            "default"
        }
        for name in names.values():
            if name != "default":
                assert (await counters.claim(name)).admitted
        assert not waiting.done()
        for server in servers.servers:
            server.run("CLUSTER", "SETSLOT", missing, "NODE", servers.id_of(owner))
        assert (await waiting).admitted
        assert (await counters.check()).unreachable == []
        await counters.close()
        await hasty.close()

    asyncio.run(scenario())


def test_nodes_that_all_went_away_and_came_back_are_found_again(clusters: Callable[..., ClusterServers]) -> None:
    servers = clusters()

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 1.0), Silence(), timeout=1.0)
        await counters.open()
        await in_the_end(lambda: counters.put("seats", 10))
        assert (await in_the_end(lambda: counters.claim("seats"))).request_count >= 1
        for server in servers.servers:
            server.kill()
        with pytest.raises(StoreUnavailable):
            await counters.claim("seats")
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:"):
            await counters.check()
        for server in servers.servers:
            server.start()
        assert (await in_the_end(lambda: counters.claim("seats"))).request_count >= 2
        await counters.close()

    asyncio.run(scenario())


def test_readiness_and_metrics_name_the_shards_that_dont_answer(
    clusters: Callable[..., ClusterServers], service: Callable[..., Service]
) -> None:
    servers = clusters()
    names = names_by_owner(servers)
    running = service(servers.url, wait_for="/readyz", admin_token="t")
    down = servers.servers[2]
    everybody = {f"127.0.0.1:{server.port}": 2 for server in servers.servers}
    wait_until(lambda: connected(running) == everybody, "both workers to be connected to each shard")
    assert running.get("/readyz") == (200, {"status": "ready", "unreachable": []})
    for name in names.values():
        assert running.get(f"/counters/{name}", "PUT", b'{"limit": 5}', Authorization="Bearer t")[0] == 201
    down.kill()
    without = {"status": "ready", "unreachable": [f"127.0.0.1:{down.port}"]}
    wait_until(lambda: running.get("/readyz") == (200, without), "readiness to name the shard")
    wait_until(lambda: connected(running) == everybody | {f"127.0.0.1:{down.port}": 0}, "metrics to name it")
    for server, name in names.items():
        status, body = running.get(f"/counters/{name}", "POST")
        assert status == (503 if server is down else 200)
        assert server is not down or f"127.0.0.1:{down.port}" in running.get(f"/counters/{name}")[1]["detail"]
        assert body
    for server in servers.servers[:2]:
        server.kill()
    wait_until(lambda: running.get("/readyz")[0] == 503, "nobody to be ready")
    detail = running.get("/readyz")[1]["detail"]
    assert any(f"127.0.0.1:{server.port}" in detail for server in servers.servers)


def test_a_shard_that_takes_no_writes_is_named_and_all_of_them_are_not_ready(
    clusters: Callable[..., ClusterServers],
) -> None:
    servers = clusters()
    full, *others = servers.servers

    async def scenario() -> None:
        async with opened(servers.url) as store:
            await until(lambda: [*links(store).values()] == [True] * 3)
            assert await store.probe() == []
            full.run("CONFIG", "SET", "maxmemory", 1)
            assert await store.probe() == [f"127.0.0.1:{full.port}"]
            for server in others:
                server.run("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(StoreUnavailable, match="OOM"):
                await store.probe()

    asyncio.run(scenario())


def test_the_command_line_finds_a_counters_shard(clusters: Callable[..., ClusterServers], tmp_path: Path) -> None:
    servers = clusters()
    for name in names_by_owner(servers).values():
        assert run("status", name, home=tmp_path, store=servers.url)[0] == 2
    assert run("reset", home=tmp_path, store=servers.url)[1] == "default: 0 of 100\n"
    assert run("status", home=tmp_path, store=servers.url)[1] == "default: 0 of 100\n"


def test_a_server_that_is_no_cluster_is_the_trouble(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server()

    async def scenario() -> None:
        store = create_store(f"redis+cluster://127.0.0.1:{server.port}", 1.0)
        await store.open()
        await until(lambda: "Cluster mode is not enabled" in trouble(store))
        await store.close()

    asyncio.run(scenario())
