"""Fixtures: a store server for the whole run, services that are stopped whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import PostgresServer, RedisServer, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start store servers of one's own."""
    started: list[RedisServer] = []

    def start(program: str | None = None, *options: str) -> RedisServer:
        started.append(RedisServer(tmp_path / f"store-{len(started)}", program, *options))
        return started[-1].start()

    yield start
    for server in started:
        server.stop()


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
