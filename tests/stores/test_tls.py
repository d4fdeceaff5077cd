"""Stores behind TLS: a claim gets through, and a server that isn't the one that was meant gets nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trustme

from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import StoreUnavailable
from pythonricing.stores import create_store
from tests.support import Silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadtests.rig.cluster import ClusterServers
    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer
    from loadtests.rig.sentinels import SentinelServers


#: How PostgreSQL's clients ask for TLS before they begin with it ("Message Formats" in its manual).
SSL_REQUEST = struct.pack("!II", 8, 80877103)


class Door:
    """Another port of a server, for clients with TLS; other servers, which send no handshake, get through without.

    It stands in for a server's own TLS, because not every Redis, Valkey or PostgreSQL is built with it.
    """

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self.target, self._context = target, context
        self.tls = self.plain = 0  # connections
        self._listener = socket.create_server(("127.0.0.1", free_port()), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            if client.recv(8, socket.MSG_PEEK) == SSL_REQUEST:
                client.recv(8)
                client.sendall(b"S")
            first = client.recv(1, socket.MSG_PEEK)
            if first == b"\x16":  # of a handshake (RFC 8446, section 5.1)
                client = self._context.wrap_socket(client, server_side=True)
                self.tls += 1
            elif first:  # and not given up before
                self.plain += 1
            replies = threading.Thread(target=_forward, args=(server, client), daemon=True)
            replies.start()
            _forward(client, server)
            replies.join()
            client.close()

    def close(self) -> None:
        self._listener.close()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    """What a server needs to be trusted as 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the certificate that clients trust."""
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def doors(context: ssl.SSLContext) -> Iterator[Callable[[int], Door]]:
    """Open doors to ports."""
    opened: list[Door] = []

    def open_door(target: int) -> Door:
        opened.append(Door(target, context))
        return opened[-1]

    yield open_door
    for door in opened:
        door.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A file with a certificate that has nothing to do with the servers."""
    path = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def claim_twice(url: str) -> None:
    async def scenario() -> None:
        counters = Counters(create_store(url, PATIENCE), Silence(), timeout=PATIENCE)
        await counters.open()
        await counters.put("seats", 1)
        assert (await counters.claim("seats")).admitted
        assert not (await counters.claim("seats")).admitted
        async with asyncio.timeout(PATIENCE):
            while (await counters.check()).unreachable:  # not every shard answers yet
                continue
        await counters.close()

    asyncio.run(scenario())


def is_refused(url: str, why: str) -> None:
    async def scenario() -> None:
        counters = Counters(create_store(url, 1.0), Silence(), timeout=1.0)
        await counters.open()
        told = ""
        async with asyncio.timeout(PATIENCE):
            while why not in told:  # or that it took too long to find out
                with pytest.raises(StoreUnavailable) as error:
                    await counters.read("seats")
                told = str(error.value)
        await counters.close()

    asyncio.run(scenario())


def test_a_single_server(
    doors: Callable[[int], Door], redis_server: Callable[..., RedisServer], trusted: Path, stranger: Path
) -> None:
    door = doors(redis_server().port)
    claim_twice(f"rediss://127.0.0.1:{door.port}/0?ssl_ca_certs={trusted}")
    is_refused(f"rediss://127.0.0.1:{door.port}/0?ssl_ca_certs={stranger}", "certificate verify failed")
    assert (door.tls, door.plain) == (1, 0)


def test_a_cluster(
    doors: Callable[[int], Door], clusters: Callable[..., ClusterServers], trusted: Path, stranger: Path
) -> None:
    servers = clusters().servers
    opened = [doors(server.port) for server in servers]
    for server, door in zip(servers, opened, strict=True):
        server.run("CONFIG", "SET", "cluster-announce-port", door.port)
    ports = {door.port for door in opened}
    wait_until(lambda: {shard[2][1] for shard in servers[0].run("CLUSTER", "SLOTS")} == ports, "the nodes to tell")
    where = f"rediss+cluster://127.0.0.1:{opened[0].port}"
    claim_twice(f"{where}?ssl_ca_certs={trusted}")
    assert all(door.tls and not door.plain for door in opened)
    is_refused(f"{where}?ssl_ca_certs={stranger}", "certificate verify failed")


def test_sentinels_and_their_master(
    doors: Callable[[int], Door], sentinels: Callable[..., SentinelServers], trusted: Path, stranger: Path
) -> None:
    data: list[Door] = []

    def known_at(port: int) -> int:
        data.append(doors(port))
        return data[-1].port

    asked = [doors(sentinel.port) for sentinel in sentinels(door=known_at).sentinels]
    where = f"rediss+sentinel://{','.join(f'127.0.0.1:{door.port}' for door in asked)}/service/0"
    claim_twice(f"{where}?ssl_ca_certs={trusted}")
    assert data[0].tls
    assert any(door.tls for door in asked)  # the others may have been too slow
    assert not any(door.plain for door in asked)
    is_refused(f"{where}?ssl_ca_certs={stranger}", "certificate verify failed")


def test_postgresql(
    doors: Callable[[int], Door], empty_postgres: PostgresServer, trusted: Path, stranger: Path
) -> None:
    door = doors(empty_postgres.port)
    where = f"postgresql://postgres@127.0.0.1:{door.port}/postgres?sslmode=verify-full"
    claim_twice(f"{where}&sslrootcert={trusted}")
    assert door.tls
    assert not door.plain
    is_refused(f"{where}&sslrootcert={stranger}", "certificate verify failed")
