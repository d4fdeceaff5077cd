"""What the Redis store makes of a URL, and how its connections are opened, greeted, lost and brought by others."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.counting.model import Rules, StoreUnavailable, StoreURLError, Wish
from pythonricing.counting.store import trouble
from pythonricing.stores import create_store
from pythonricing.stores.redis.pipeline import Pipeline
from pythonricing.stores.redis.store import RedisStore
from pythonricing.stores.redis.url import Address, read
from tests.serve.commands import fails
from tests.stores.support import batch, opened, persist, until, word

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://u:secret@a?nonsense=1", "redis:// has no option nonsense"),
        ("redis://u:secret@a?path=/x", "redis:// has no option path"),
        ("redis://u:secret@a?ssl_ca_certs=/x", "redis:// has no option ssl_ca_certs; TLS is rediss://"),
        ("redis://u:secret@a?socket_timeout=soon", "socket_timeout"),
        ("redis://u:secret@a:99999", "Port out of range"),
        ("redis://u:secret@a?db=first", "'db'"),
        ("rediss://u:secret@a?ssl_cert_reqs=maybe", "ssl_cert_reqs is one of none, optional, required"),
        ("rediss://u:secret@a?ssl_ca_certs=/nowhere/ca.pem", "No such file"),
        ("rediss://u:secret@a?ssl_min_version=1", "TLSVersion"),
        ("unix://u:secret@?db=1", "the path must name the socket"),
        ("unix://u:secret@/run/x?host=a", "unix:// has no option host"),
    ],
)
def test_a_url_that_cant_be_used_is_one_clear_line_without_its_password(url: str, complaint: str) -> None:
    with pytest.raises(StoreURLError) as error:
        create_store(url, 1.0)
    line = str(error.value)
    assert complaint in line
    assert "\n" not in line
    assert "secret" not in line


def test_a_url_says_where_as_whom_and_how() -> None:
    plain = read("redis://u:p%40@a:7/3?client_name=me&socket_connect_timeout=0.5&socket_timeout=2&socket_keepalive=no")
    assert plain.address == Address("a", 7)
    assert (plain.username, plain.password, plain.db, plain.client_name) == ("u", "p@", 3, "me")
    assert (plain.connect_timeout, plain.reply_timeout, plain.keepalive, plain.tls) == (0.5, 2.0, False, None)
    assert read("redis://").address == Address("localhost", 6379)
    assert str(read("unix:///run/valkey.sock?db=2").address) == "/run/valkey.sock"
    shared = read("redis://a?protocol=3&health_check_interval=9&max_connections=5&retry_on_timeout=yes")
    assert shared.keepalive
    safe = read("rediss://a?ssl_check_hostname=no&ssl_min_version=772&ssl_include_verify_flags=VERIFY_X509_STRICT").tls
    assert safe is not None
    assert (safe.verify_mode, safe.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert safe.minimum_version is ssl.TLSVersion.TLSv1_3
    assert safe.verify_flags & ssl.VERIFY_X509_STRICT


def test_a_connection_tells_its_name_and_takes_its_database(
    redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    path = tmp_path / "valkey.sock"
    server = redis_server(None, "--unixsocket", str(path))

    async def scenario() -> None:
        for url in (f"unix://{path}?db=3&client_name=me", f"redis://127.0.0.1:{server.port}/3?client_name=me"):
            async with opened(url) as store:
                assert (await store.put(url.partition(":")[0], word(), 5))[1]
                assert "name=me" in server.run("CLIENT", "LIST")
        assert set(server.info("keyspace")) == {"db3"}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("user", "password", "error"),
    [("", "", "NOAUTH"), ("counter:", "wrong", "WRONGPASS"), ("counter:", "right", ""), ("", "first", "")],
)
def test_a_user_who_isnt_let_in_is_the_trouble(
    redis_server: Callable[..., RedisServer], user: str, password: str, error: str
) -> None:
    server = redis_server()
    server.run("ACL", "SETUSER", "counter", "on", ">right", "~*", "&*", "+@all")
    server.run("CONFIG", "SET", "requirepass", "first")
    at = f"{user}{password}@" if user else f":{password}@" if password else ""

    async def scenario() -> None:
        store = create_store(f"redis://{at}127.0.0.1:{server.port}", PATIENCE)
        await store.open()
        if error:
            await until(lambda: trouble(store).startswith(f"127.0.0.1:{server.port}: {error}"))
            assert not store.servers()[0].connected
        else:
            await asyncio.wait_for(store.ready(), PATIENCE)
        await store.close()

    asyncio.run(scenario())


def test_who_connects_is_the_callers_choice(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server()
    dialled: list[Address] = []
    transports: list[asyncio.BaseTransport] = []

    async def dial(factory: Callable[[], Pipeline], address: Address) -> tuple[Any, Pipeline]:
        dialled.append(address)
        transport, pipeline = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", server.port)
        transports.append(transport)
        return transport, pipeline

    async def scenario() -> None:
        store = RedisStore("redis://elsewhere:7", 20.0, dial=dial)
        told: list[int] = []
        store.on_connect = lambda: told.append(len(dialled))
        await store.open()
        await asyncio.wait_for(store.ready(), PATIENCE)
        await store.put("seats", word(), 5)
        transports[0].close()
        await until(lambda: store.servers()[0].reconnects == 1)
        assert (await persist(store, lambda: store.claim(batch("seats", 1, 2)))).before == 0
        assert dialled == [Address("elsewhere", 7)] * 2
        assert told == [1, 2]
        assert store.server_of("seats") == store.servers()[0].name == "elsewhere:7"
        await store.close()

    asyncio.run(scenario())


def test_a_server_that_greets_nobody_is_given_up_in_time() -> None:
    async def scenario() -> None:
        silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(3600), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        store = create_store(f"redis://127.0.0.1:{port}?socket_timeout=0.05", 60.0)
        await store.open()
        await until(lambda: trouble(store) == f"127.0.0.1:{port}: no answer in time")
        await store.close()
        silent.close()

    asyncio.run(scenario())


def test_a_pipeline_without_a_transport_sends_nothing() -> None:
    async def scenario() -> None:
        with pytest.raises(StoreUnavailable, match="closed"):
            await Pipeline(1.0, lambda: None).call("PING")

    asyncio.run(scenario())


def test_an_option_about_eviction_only_allows_it() -> None:
    with pytest.raises(StoreURLError, match="eviction=allowed"):
        create_store("redis://a?eviction=no", 1.0)


def test_a_server_that_evicts_is_refused_by_serve_with_one_line(
    redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_server(None, "--maxmemory-policy", "volatile-lru")
    line = fails(tmp_path, "serve", "--store", server.url)
    assert f"127.0.0.1:{server.port}: maxmemory-policy is volatile-lru" in line
    assert "eviction=allowed" in line


def test_a_server_that_evicts_is_used_where_its_url_allows_it(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server(None, "--maxmemory-policy", "volatile-lru")

    async def scenario() -> None:
        async with opened(f"{server.url}?eviction=allowed") as store:
            assert (await store.put("seats", word(), 5))[1]

    asyncio.run(scenario())


def test_a_server_that_doesnt_tell_whether_it_evicts_is_refused(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server()
    server.run("ACL", "SETUSER", "counter", "on", ">right", "~*", "&*", "+@all", "-info")

    async def scenario() -> None:
        store = create_store(f"redis://counter:right@127.0.0.1:{server.port}", PATIENCE)
        await store.open()
        await until(lambda: "whether it evicts keys is not known: NOPERM" in trouble(store))
        await store.close()

    asyncio.run(scenario())


def test_a_server_that_begins_to_evict_is_noticed_with_the_next_connection(
    redis_server: Callable[..., RedisServer], service: Callable[..., Service]
) -> None:
    server = redis_server()
    running = service(server.url, "/readyz", store_timeout=1)
    server.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert running.get("/", "POST")[0] == 200
    server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until(lambda: running.get("/readyz")[0] == 503, "the worker to notice")
    wait_until(lambda: "maxmemory-policy is allkeys-lru" in running.get("/readyz")[1]["detail"], "the reason")
    assert running.get("/", "POST")[0] == 503
    server.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
    wait_until(lambda: running.get("/readyz")[0] == 200, "the worker to be ready again")


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_server_that_takes_no_writes_is_not_ready_and_says_why(
    redis_server: Callable[..., RedisServer], service: Callable[..., Service], replicas: int
) -> None:
    server = redis_server()
    if replicas:
        redis_server(None, "--replicaof", f"127.0.0.1 {server.port}")
    running = service(server.url, "/readyz", store_timeout=5, store_replicas=replicas)
    server.run("CONFIG", "SET", "maxmemory", 1)
    assert running.get("/", "POST")[0] == 503
    status, problem = running.get("/readyz")
    assert (status, problem["detail"].count("OOM")) == (503, 1)
    server.run("CONFIG", "SET", "maxmemory", 0)
    wait_until(lambda: running.get("/readyz")[0] == 200, "the worker to be ready again")
    assert running.get("/", "POST")[0] == 200


def test_a_refusal_is_remembered_for_a_minute_and_an_admission_for_a_day(
    redis_server: Callable[..., RedisServer],
) -> None:
    server = redis_server()

    async def scenario() -> None:
        async with opened(server.url) as store:
            await store.claim(batch("seats", 1, 1, 1, keys=["in", "out"], create=1))

    asyncio.run(scenario())
    admitted, refused = (server.run("TTL", f"pythonricing:{{seats}}:key:{key}") for key in ("in", "out"))
    assert 60 < admitted <= 86_400
    assert 0 < refused <= 60


def test_a_state_of_a_newer_version_closes_its_counter_and_says_so(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", workers=1, limit=10, halt_cache=0, admin_token="t")
    admin: dict[str, Any] = {"authorization": "Bearer t"}
    assert running.get("/")[0] == 200
    counter = "pythonricing:{default}"
    assert empty_valkey.run("HGET", counter, "version") == "2"
    empty_valkey.run("HSET", counter, "version", 4, "revision", 7)  # as a newer worker would change it
    asked = [("/", "POST"), ("/counters/default", "GET"), ("/readyz", "GET"), ("/counters/default", "DELETE")]
    for path, method in asked:
        status, problem = running.get(path, method, **admin)
        assert (status, problem["title"]) == (503, "Store unavailable")
        assert "has version 4, newer than this pythonricing knows (3); upgrade it" in problem["detail"]
    assert running.get("/counters/default", "PUT", b'{"limit": 50}', **admin)[0] == 503
    assert empty_valkey.run("HMGET", counter, "count", "limit", "version") == ["1", "10", "4"]
    empty_valkey.run("HSET", counter, "version", 2)
    assert running.get("/")[1] == {"request_count": 2, "limit": 10}
    running.stop()
    assert any("upgrade it" in record["message"] for record in running.log() if record["level"]["name"] == "ERROR")


def test_what_is_given_back_leaves_nobody_s_name_behind(empty_valkey: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(empty_valkey.url) as store:
            await store.put("seats", word(), 10, Rules(each=4))
            await store.claim(batch("seats", 1, 2, 1, wishes=[Wish("a", 60, "alice"), Wish("b", 60, "bob")]))
            await store.resolve("seats", word(), "a", "release")
            await store.give_back("seats", word(), [(3, 3)])

    asyncio.run(scenario())
    left = empty_valkey.run("HGETALL", "pythonricing:{seats}")
    assert left[left.index("chunk:0") + 1] == "- 1-3 -"
    assert not [each for each in left if "alice" in each or "bob" in each]


def test_a_state_without_a_version_is_read_and_gets_one(empty_valkey: RedisServer) -> None:
    async def scenario() -> None:
        empty_valkey.run("HSET", "pythonricing:{seats}", "count", 4, "limit", 9, "epoch", 1, "origin", "operator")
        async with opened(empty_valkey.url) as store:
            assert (await store.claim(batch("seats", 1, 1))).before == 4
            assert (await store.put("seats", word(), 10))[0].count == 5

    asyncio.run(scenario())
    assert empty_valkey.run("HGET", "pythonricing:{seats}", "version") == "2"


def test_a_state_with_leases_goes_on_and_has_its_version_until_it_has_more(empty_valkey: RedisServer) -> None:
    counter, epoch = "pythonricing:{seats}", 1_700_000_000_000_000
    fields: dict[str, Any] = {
        "count": 20,
        "limit": 1000,
        "most": 0,
        "epoch": epoch,
        "revision": 2,
        "base": 0,
        "moved": 3,
        "version": 2,
    }
    fields |= {"free": f"{epoch} 4-5", "lease:other": f"{epoch} {epoch} 11-18"}

    async def scenario() -> None:
        empty_valkey.run("HSET", counter, *(word for field in fields.items() for word in field))
        async with opened(empty_valkey.url) as store:
            assert (await store.claim(batch("seats", 1, 2))).runs == [(4, 5)]
            await store.claim(batch("seats", 1, worker="other", back=[(11, 18)]))
            assert (await store.claim(batch("seats", 2, 8))).runs == [(11, 18)]
            known = (await store.read("seats")).seen
            assert empty_valkey.run("HMGET", counter, "version", "revision") == ["2", "2"]
            # Workers of that version compare the revision, before they count, and look at the version if it is another.
            assert (await store.claim(batch("seats", 3, 1, seen=known, wishes=[Wish("id", 60, "")]))).runs == [(21, 21)]
            assert empty_valkey.run("HMGET", counter, "version", "revision") == ["3", "02"]
            assert (await store.claim(batch("seats", 4, 1, seen=known))).runs == [(22, 22)]
            assert (await store.resolve("seats", word(known), "id", "release"))[1].count == 21
            assert (await store.put("seats", word(), None, Rules(every="day")))[0].revision == 3
            assert empty_valkey.run("HMGET", counter, "version", "revision") == ["3", "03"]

    asyncio.run(scenario())
