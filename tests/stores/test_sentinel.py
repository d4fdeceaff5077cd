"""The store behind Sentinels, and replicas that confirm: real servers, real failovers."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import (
    Answer,
    NoSuchCounter,
    StateLost,
    StoreUnavailable,
    StoreURLError,
)
from pythonricing.counting.store import trouble
from pythonricing.stores import create_store
from pythonricing.stores.redis.url import read_cluster, read_sentinel
from tests.stores.support import (
    assert_once_each,
    batch,
    calls,
    claim_steadily,
    connected,
    elected,
    in_the_end,
    links,
    opened,
    persist,
    until,
    word,
)
from tests.support import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.sentinels import SentinelServers
    from loadtests.rig.service import Service

REDIS = "redis-server"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+sentinel://u:secret@a:1", "the path must name the service, as in /mymaster"),
        ("redis+sentinel://u:secret@a:1/", "the path must name the service, as in /mymaster"),
        ("redis+sentinel://u:secret@a:1/s/x", "only the number of a database may follow"),
        ("redis+sentinel://u:secret@a:1/s/1/2", "only the number of a database may follow"),
        ("redis+sentinel://u:secret@/s", "servers are named like host:port,host:port"),
        ("redis+sentinel://u:secret@a:1,,b/s", "servers are named like host:port,host:port"),
        ("redis+sentinel://u:secret@a:x/s", "Port could not be cast"),
        ("redis+sentinel://u:secret@a:1/s?sentinel_user=me", "there is no option sentinel_user"),
        ("redis+sentinel://u:secret@a:1/s?sentinel_password=secret&nonsense=1", "nonsense"),
        ("redis+sentinel://u:secret@a:1/s?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_a_url_that_cant_be_used_is_one_clear_line_without_its_password(url: str, complaint: str) -> None:
    with pytest.raises(StoreURLError) as error:
        create_store(url, 1.0)
    line = str(error.value)
    assert complaint in line
    assert "\n" not in line
    assert "secret" not in line


def test_a_url_names_sentinels_with_their_usual_port_and_passes_options_on() -> None:
    options = read_sentinel(
        "rediss+sentinel://u:p@a,[::1]:7,b:8/svc/3?sentinel_username=v&sentinel_password=q&ssl_cert_reqs=none"
    )
    assert options.sentinels == [("a", 26379), ("::1", 7), ("b", 8)]
    assert (options.service, options.username, options.password) == ("svc", "v", "q")
    assert (options.data.username, options.data.password, options.data.db) == ("u", "p", 3)
    assert options.data.tls is not None
    assert options.data.tls.verify_mode == ssl.CERT_NONE
    assert options.data.tls_words == {"ssl": True, "ssl_cert_reqs": "none"}


def test_a_url_of_a_cluster_names_addresses_of_every_kind() -> None:
    options = read_cluster("redis+cluster://u:p@a,[::1]:7,[fe80::2]?eviction=allowed")
    assert options.seeds == [("a", 6379), ("::1", 7), ("fe80::2", 6379)]
    assert (options.data.username, options.data.password, options.data.eviction) == ("u", "p", True)


def test_users_and_passwords_of_servers_and_sentinels_are_apart(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels(sentinels=1)
    for server in servers.servers:
        server.run("ACL", "SETUSER", "counter", "on", ">data", "~*", "&*", "+@all")
        server.run("ACL", "SETUSER", "default", "-eval", "-evalsha")
    servers.sentinels[0].run("ACL", "SETUSER", "watcher", "on", ">watch", "~*", "&*", "+@all")
    url = servers.url.replace("://", "://counter:data@")

    async def scenario() -> None:
        async with opened(f"{url}?sentinel_username=watcher&sentinel_password=watch") as store:
            assert (await store.put("seats", word(), 5))[1]
        wrong = create_store(f"{url}?sentinel_username=watcher&sentinel_password=wrong", 1.0)
        await wrong.open()
        await until(lambda: "invalid username-password" in trouble(wrong))
        assert links(wrong) == {}
        await wrong.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["ordered", "killed", "paused"])
def test_claims_follow_the_master_through_a_failover(
    sentinels: Callable[..., SentinelServers], program: str, how: str
) -> None:
    servers = sentinels(program=program)
    old = servers.master

    async def scenario() -> None:
        store = create_store(servers.url, 2.0, on_loss="raise")
        counters = Counters(store, Silence(), timeout=2.0)
        await counters.open()
        await in_the_end(lambda: counters.put("seats", 1_000_000))
        assert elected(store) == f"127.0.0.1:{old.port}"
        answers: list[Answer | Exception] = []
        tasks = [asyncio.create_task(claim_steadily(counters, answers)) for _ in range(4)]
        await asyncio.sleep(0.3)
        if how == "ordered":
            servers.sentinels[0].run("SENTINEL", "FAILOVER", "service")
        else:
            old.kill() if how == "killed" else old.pause()
        new = await asyncio.to_thread(servers.wait_for_failover, old)
        await until(lambda: links(store) == {f"127.0.0.1:{new.port}": True})
        before = len(answers)
        await until(lambda: any(isinstance(answer, Answer) for answer in answers[before:]))
        if how == "paused":
            old.resume()  # it still takes itself for the master
            await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await counters.close()
        assert_once_each(answers)
        assert elected(store) == f"127.0.0.1:{new.port}"

    asyncio.run(scenario())


def test_a_master_that_was_demoted_is_left_at_the_first_claim(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels()
    old, new = servers.master, servers.replicas[0]

    async def scenario() -> None:
        async with opened(servers.url) as store:
            await store.put("seats", word(), 10)
            for sentinel in servers.sentinels:
                sentinel.pause()  # nobody tells, and nobody closes a connection
            new.run("REPLICAOF", "NO", "ONE")
            old.run("REPLICAOF", "127.0.0.1", new.port)
            with pytest.raises(StoreUnavailable, match="READONLY"):
                await store.claim(batch("seats", 1, 1))
            assert not any(links(store).values())
            for sentinel in servers.sentinels:
                sentinel.resume()
            await until(lambda: "is no master" in trouble(store) and not any(links(store).values()))
            assert (await persist(store, lambda: store.claim(batch("seats", 1, 1)))).before == 0

    asyncio.run(scenario())


def test_a_server_that_sentinels_name_but_is_no_master_gets_no_claims(
    sentinels: Callable[..., SentinelServers], redis_server: Callable[..., RedisServer]
) -> None:
    servers = sentinels(sentinels=1)
    replica = redis_server(None, "--replicaof", "127.0.0.1", str(servers.master.port))
    servers.sentinels[0].run("SENTINEL", "REMOVE", "service")
    servers.sentinels[0].run("SENTINEL", "MONITOR", "service", "127.0.0.1", replica.port, 1)
    servers.sentinels[0].run("SENTINEL", "SET", "service", "down-after-milliseconds", 3_600_000)

    async def scenario() -> None:
        store = create_store(servers.url, 1.0)
        await store.open()
        await until(lambda: "no master" in trouble(store))
        assert not any(links(store).values())
        await store.close()

    asyncio.run(scenario())


def test_a_master_that_still_answers_is_left_once_sentinels_name_another(
    sentinels: Callable[..., SentinelServers], redis_server: Callable[..., RedisServer]
) -> None:
    servers = sentinels()
    other = redis_server()

    async def scenario() -> None:
        async with opened(servers.url) as store:
            await store.put("seats", word(), 10)
            for sentinel in servers.sentinels:
                sentinel.run("SENTINEL", "REMOVE", "service")
                sentinel.run("SENTINEL", "MONITOR", "service", "127.0.0.1", other.port, 2)
            await until(lambda: links(store) == {f"127.0.0.1:{other.port}": True})

    asyncio.run(scenario())


def test_a_master_that_was_silent_until_it_was_replaced_gets_no_claims(
    sentinels: Callable[..., SentinelServers], redis_server: Callable[..., RedisServer]
) -> None:
    servers, other = sentinels(sentinels=1, down_after=3600), redis_server()
    old = servers.master

    async def scenario() -> None:
        old.pause()
        store = create_store(servers.url, 20.0)
        await store.open()
        await until(lambda: elected(store) == f"127.0.0.1:{old.port}")
        servers.sentinels[0].run("SENTINEL", "REMOVE", "service")
        servers.sentinels[0].run("SENTINEL", "MONITOR", "service", "127.0.0.1", other.port, 1)
        old.resume()
        await asyncio.wait_for(store.ready(), PATIENCE)
        assert elected(store) == f"127.0.0.1:{other.port}"
        await store.close()

    asyncio.run(scenario())


def test_the_newest_word_counts_whichever_sentinel_is_asked_first(
    sentinels: Callable[..., SentinelServers],
) -> None:
    stale, fresh = sentinels(replicas=0, sentinels=1), sentinels(sentinels=1)
    old = fresh.master
    fresh.sentinels[0].run("SENTINEL", "FAILOVER", "service")
    new = fresh.wait_for_failover(old)
    addresses = [f"127.0.0.1:{servers.sentinels[0].port}" for servers in (stale, fresh)]

    async def scenario() -> None:
        for order in (addresses, addresses[::-1]):
            async with opened(f"redis+sentinel://{','.join(order)}/service") as store:
                assert elected(store) == f"127.0.0.1:{new.port}"

    asyncio.run(scenario())


def test_sentinels_that_know_no_master_are_the_trouble(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels(replicas=0, sentinels=1)

    async def meet(url: str, word: str) -> None:
        store = create_store(url, 1.0)
        await store.open()
        await until(lambda: word in trouble(store))
        await store.close()

    asyncio.run(meet(servers.url.replace("/service", "/other"), "no Sentinel names a master for other"))
    servers.master.kill()
    wait_until(lambda: "s_down" in str(servers.sentinels[0].ask("SENTINEL", "MASTER", "service")), "it to be missed")
    asyncio.run(meet(servers.url, "no Sentinel names a master for service: 127.0.0.1"))


def test_what_too_few_replicas_have_is_unavailable_until_the_receipt_settles_it(
    sentinels: Callable[..., SentinelServers], program: str
) -> None:
    servers = sentinels("--appendfsync", "everysec", sentinels=1, down_after=3600.0, program=program)
    master, replica = servers.master, servers.replicas[0]

    async def scenario() -> None:
        async with opened(servers.url, 2.0, replicas=1) as store:
            await persist(store, lambda: store.put("seats", word(), 10))
            assert (await persist(store, lambda: store.claim(batch("seats", 1, 1)))).before == 0
            replica.pause()
            with pytest.raises(StoreUnavailable, match="0 of 1 replicas have confirmed in time"):
                await store.claim(batch("seats", 2, 3))
            assert (await store.read("seats")).count == 4  # executed, and nobody was told that it was
            for act in (
                store.put("seats", word(), 20),
                store.put("seats", word(), None, how="restart"),
                store.put("seats", word(), 20, how="configure"),
                store.delete("seats", word()),
            ):
                with pytest.raises(StoreUnavailable, match="0 of 1"):
                    await act
            with pytest.raises(NoSuchCounter):  # that was executed as well
                await persist(store, lambda: store.read("seats"))

    async def again() -> None:
        async with opened(servers.url, 2.0, replicas=1) as store:
            # Over a new connection, which has written nothing yet that WAIT would be about.
            with pytest.raises(StoreUnavailable, match="0 of 1"):
                await store.claim(batch("other", 2, 3, create=10))
        async with opened(servers.url, 2.0, replicas=1) as store:
            with pytest.raises(StoreUnavailable, match="0 of 1"):
                await store.claim(batch("other", 2, 3, create=10))
            replica.resume()
            verdict = await persist(store, lambda: store.claim(batch("other", 2, 3, create=10)))
            assert (verdict.before, (await store.read("other")).count) == (0, 3)
            assert replica.ask("HGET", "pythonricing:{other}", "count") == "3"

    asyncio.run(scenario())
    asyncio.run(again())
    assert calls(master, "wait") > 0


def test_a_repeated_key_alone_is_confirmed_too(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels("--appendfsync", "everysec", sentinels=1, down_after=3600.0)

    async def scenario() -> None:
        async with opened(servers.url, 2.0, replicas=1) as store:
            await persist(store, lambda: store.put("seats", word(), 10))
            servers.replicas[0].pause()
            with pytest.raises(StoreUnavailable, match="0 of 1"):
                await store.claim(batch("seats", 1, 1, keys=["order"]))
        async with opened(servers.url, 2.0, replicas=1) as store:
            with pytest.raises(StoreUnavailable, match="0 of 1"):
                await store.claim(batch("seats", 1, 1, keys=["order"], worker="another"))

    asyncio.run(scenario())


def test_a_worker_is_not_ready_while_too_few_replicas_confirm(
    sentinels: Callable[..., SentinelServers], service: Callable[..., Service]
) -> None:
    servers = sentinels("--appendfsync", "everysec", sentinels=1, down_after=3600.0)
    running = service(servers.url, wait_for="/readyz", workers=1, store_replicas=1)
    assert running.get("/", "POST")[0] == 200
    servers.replicas[0].pause()
    status, body = running.get("/", "POST")
    assert status == 503
    status, body = running.get("/readyz")
    assert (status, body["detail"]) == (503, "0 of 1 replicas have confirmed in time")
    servers.replicas[0].resume()
    wait_until(lambda: running.get("/readyz")[0] == 200, "the worker to be ready again")
    wait_until(lambda: any("orphaned" in record["extra"] for record in running.log()), "the receipt to settle it")
    assert running.get("/", "POST")[1]["request_count"] == 3


def test_two_replicas_are_not_one(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels("--appendfsync", "everysec", sentinels=1)

    async def scenario() -> None:
        async with opened(servers.url, 4.0, replicas=2) as store:
            with pytest.raises(StoreUnavailable, match="1 of 2 replicas have confirmed in time"):
                await store.put("seats", word(), 10)

    asyncio.run(scenario())


def test_a_server_that_syncs_every_write_waits_for_the_disks_if_it_can(
    sentinels: Callable[..., SentinelServers], program: str
) -> None:
    servers = sentinels("--appendfsync", "always", sentinels=1, program=program)
    newer = bool(servers.master.run("COMMAND", "INFO", "WAITAOF")[0])

    async def scenario() -> None:
        async with opened(servers.url, replicas=1) as store:
            await store.put("seats", word(), 10)
            assert (await store.claim(batch("seats", 1, 1))).before == 0

    asyncio.run(scenario())
    assert (calls(servers.master, "waitaof") > 0) == newer
    assert calls(servers.master, "wait") > 0


def test_a_server_that_does_not_tell_its_settings_waits_for_the_replicas(
    sentinels: Callable[..., SentinelServers],
) -> None:
    servers = sentinels("--appendfsync", "always", sentinels=1)
    servers.master.run("ACL", "SETUSER", "plain", "on", "nopass", "~*", "&*", "+@all", "-config")

    async def scenario() -> None:
        async with opened(servers.url.replace("://", "://plain:x@"), replicas=1) as store:
            await store.put("seats", word(), 10)

    asyncio.run(scenario())
    assert calls(servers.master, "waitaof") == 0
    assert calls(servers.master, "wait") > 0


def test_claims_on_many_counters_share_one_wait(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels("--appendfsync", "everysec", sentinels=1)

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 20.0, replicas=1), Silence(), timeout=20.0)
        await counters.open()
        names = [f"c{number}" for number in range(200)]
        await asyncio.gather(*(counters.put(name, 10) for name in names))
        before = calls(servers.master, "wait")
        answers = await asyncio.gather(*(counters.claim(name) for name in names))
        assert {answer.request_count for answer in answers} == {1}
        assert calls(servers.master, "wait") - before <= 5
        await counters.close()

    asyncio.run(scenario())


def test_a_lost_connection_fails_what_was_not_sent_yet_and_what_was_not_confirmed(
    sentinels: Callable[..., SentinelServers],
) -> None:
    servers = sentinels("--appendfsync", "everysec", sentinels=1, down_after=3600.0)

    async def scenario() -> None:
        async with opened(servers.url, 20.0, replicas=1) as store:
            await store.put("seats", word(), 10)
            servers.replicas[0].pause()
            sent = asyncio.ensure_future(store.claim(batch("seats", 1, 1)))
            await asyncio.sleep(0.2)
            queued = asyncio.ensure_future(store.claim(batch("seats", 1, 1, worker="v")))
            await asyncio.sleep(0)
            assert calls(servers.master, "wait") >= 0
            servers.master.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for task in (sent, queued):
                with pytest.raises(StoreUnavailable):
                    await asyncio.wait_for(task, PATIENCE)
            servers.replicas[0].resume()
            assert (await persist(store, lambda: store.claim(batch("seats", 1, 1)))).before == 0
            assert (await persist(store, lambda: store.claim(batch("seats", 1, 1, worker="v")))).before == 1

    asyncio.run(scenario())


def test_nothing_confirmed_is_lost_when_the_master_dies(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels("--appendfsync", "everysec")
    old = servers.master

    async def scenario() -> None:
        counters = Counters(create_store(servers.url, 2.0, replicas=1), Silence(), timeout=2.0)
        await counters.open()
        await in_the_end(lambda: counters.put("seats", 1_000_000))
        answers: list[Answer | Exception] = []
        tasks = [asyncio.create_task(claim_steadily(counters, answers, 0)) for _ in range(8)]
        await asyncio.sleep(0.3)
        old.kill()
        new = await asyncio.to_thread(servers.wait_for_failover, old)
        for task in tasks:
            task.cancel()
        await counters.close()
        assert_once_each(answers)
        assert not any(isinstance(answer, StateLost) for answer in answers)
        last = max(answer.request_count for answer in answers if isinstance(answer, Answer))
        assert int(new.run("HGET", "pythonricing:{seats}", "count")) >= last

    asyncio.run(scenario())


def test_an_idle_worker_tells_a_new_master_what_it_has_seen(sentinels: Callable[..., SentinelServers]) -> None:
    servers = sentinels()
    old, new = servers.master, servers.replicas[0]
    name = f"seats-{uuid.uuid4().hex}"

    class Raised(Silence):
        events: list[tuple[str, int, int]]

        def __init__(self) -> None:
            self.events = []

        def raised(self, *event: Any) -> None:
            self.events.append(event)

    async def scenario() -> None:
        journal = Raised()
        counters = Counters(create_store(servers.url, 20.0, on_loss="raise"), journal, timeout=20.0)
        await counters.open()
        await counters.put(name, 100)
        for _ in range(5):
            await counters.claim(name)
        await until(lambda: new.ask("HGET", f"pythonricing:{{{name}}}", "count") == "5")
        new.run("CONFIG", "SET", "replica-read-only", "no")
        new.run("HSET", f"pythonricing:{{{name}}}", "count", 2)
        servers.sentinels[0].run("SENTINEL", "FAILOVER", "service")
        await asyncio.to_thread(servers.wait_for_failover, old)
        await until(lambda: new.ask("HGET", f"pythonricing:{{{name}}}", "count") == "5")
        assert journal.events == [(name, 2, 5)]
        await counters.close()

    asyncio.run(scenario())


def test_a_worker_tells_of_the_thousand_counters_that_it_saw_last(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server(None, "--appendfsync", "no")

    async def scenario() -> None:
        store = create_store(server.url, 20.0)
        counters = Counters(store, Silence(), timeout=20.0)
        await counters.open()
        for number in range(1005):
            await counters.put(f"c{number}", 10)
            await counters.claim(f"c{number}")
        server.run("CONFIG", "RESETSTAT")
        server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: calls(server, "evalsha") == 1000)
        server.run("HSET", "pythonricing:{c1004}", "count", 0)
        server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: server.ask("HEXISTS", "pythonricing:{c1004}", "lost") == 1)
        assert calls(server, "evalsha") <= 2000
        await counters.close()

    asyncio.run(scenario())


def test_a_raised_count_is_logged_once(
    redis_server: Callable[..., RedisServer], service: Callable[..., Service]
) -> None:
    server = redis_server()
    running = service(server.url, wait_for="/readyz", workers=1, on_loss="raise")
    for _ in range(3):
        running.get("/", "POST")
    server.run("HSET", "pythonricing:{default}", "count", 1)
    assert [running.get("/", "POST")[1]["request_count"] for _ in range(2)] == [4, 5]
    events = [record for record in running.log() if "raised_to" in record["extra"]]
    assert [(event["level"]["name"], event["extra"]) for event in events] == [
        ("WARNING", {"counter": "default", "raised_from": 1, "raised_to": 3})
    ]


def test_readiness_and_metrics_name_the_master(
    sentinels: Callable[..., SentinelServers], service: Callable[..., Service]
) -> None:
    servers = sentinels()
    old = servers.master
    running = service(servers.url, wait_for="/readyz")
    assert running.get("/readyz")[1] == {"status": "ready", "master": f"127.0.0.1:{old.port}"}
    wait_until(lambda: connected(running) == {f"127.0.0.1:{old.port}": 2}, "both workers to be connected")
    old.kill()
    new = servers.wait_for_failover(old)
    now = {"status": "ready", "master": f"127.0.0.1:{new.port}"}
    wait_until(lambda: running.get("/readyz") == (200, now), "readiness on the new master")
    expected = {f"127.0.0.1:{old.port}": 0, f"127.0.0.1:{new.port}": 2}
    wait_until(lambda: connected(running) == expected, "both workers to be on the new master")
    new.kill()
    wait_until(lambda: running.get("/readyz")[0] == 503, "nobody to be ready")
    assert f"127.0.0.1:{new.port}" in running.get("/readyz")[1]["detail"]
