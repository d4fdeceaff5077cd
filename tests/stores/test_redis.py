"""What the Redis store makes of a URL, and how its connections are opened, greeted, lost and brought by others."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.waiting import PATIENCE
from pythonricing.counting.model import StoreUnavailable, StoreURLError
from pythonricing.counting.store import trouble
from pythonricing.stores import create_store
from pythonricing.stores.redis.pipeline import Pipeline
from pythonricing.stores.redis.store import RedisStore
from pythonricing.stores.redis.url import Address, read
from tests.stores.support import batch, opened, persist, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtests.rig.redis import RedisServer


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
                assert (await store.put(url.partition(":")[0], 5))[1]
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
        await store.put("seats", 5)
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
