"""Fixtures: a store server for the whole run, services that are stopped whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from loadtests.rig.cluster import ClusterServers
from loadtests.rig.postgres import PostgresServer
from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.sentinels import SentinelServers
from loadtests.rig.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T", RedisServer, SentinelServers, ClusterServers)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Valkey for tests that don't harm it; each empties it first through `empty_valkey`."""
    server = RedisServer(tmp_path_factory.mktemp("valkey"), None, "--appendfsync", "no").start()
    yield server
    server.stop()


@pytest.fixture
def empty_valkey(valkey: RedisServer) -> RedisServer:
    valkey.command("FLUSHALL")
    return valkey


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for tests that don't harm it; each empties it first through `empty_postgres`."""
    server = PostgresServer(fsync="off", max_connections=200).start()
    yield server
    server.stop()


@pytest.fixture
def empty_postgres(postgres: PostgresServer) -> PostgresServer:
    postgres.sql("DROP SCHEMA IF EXISTS pythonricing CASCADE", "SELECT")
    return postgres


def start_many(kind: type[T], folder: Path) -> Iterator[Callable[..., T]]:
    """A function that starts servers of this kind, for as long as the fixture lives."""
    started: list[T] = []

    def start(*options: Any, **more: Any) -> T:
        started.append(kind(folder / f"{kind.__name__}-{len(started)}", *options, **more))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start store servers of one's own."""
    yield from start_many(RedisServer, tmp_path)


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Callable[..., SentinelServers]]:
    """Start servers with their Sentinels."""
    yield from start_many(SentinelServers, tmp_path)


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Callable[..., ClusterServers]]:
    """Start clusters."""
    yield from start_many(ClusterServers, tmp_path)


@pytest.fixture(params=redis_programs())
def program(request: pytest.FixtureRequest) -> str:
    """Each Redis or Valkey on this machine."""
    return str(request.param)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services."""
    started: list[Service] = []

    def start(store: str | None, wait_for: str = "/livez", **options: object) -> Service:
        started.append(Service(tmp_path, store, **options))  # type: ignore[arg-type]
        return started[-1].start(wait_for)

    yield start
    for each in started:
        each.stop()
