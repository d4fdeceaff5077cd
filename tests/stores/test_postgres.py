"""What is PostgreSQL's own: the schema, rights, transactions, locks, connections, poolers and cleaning up."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from click.testing import CliRunner

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import (
    Batch,
    Counter,
    NoSuchCounter,
    Replay,
    Rules,
    Seen,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    StoreURLError,
    Wish,
    Word,
)
from pythonricing.counting.store import trouble
from pythonricing.serve.cli import main
from pythonricing.stores import create_store
from pythonricing.stores.postgres import store as postgres
from pythonricing.stores.postgres.store import CONNECTIONS, PostgresStore
from tests.serve.commands import fails, run
from tests.stores.support import word
from tests.support import Silence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.service import Service

SEEN = Seen(1_700_000_000_000_000, 1, 4, 10)


@asynccontextmanager
async def opened(url: str, patience: float = 20.0) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, patience)
    await store.open()
    try:
        async with asyncio.timeout(PATIENCE):
            await store.ready()
            yield store
    finally:
        await store.close()


def batch(name: str, *sizes: int, sequence: int = 1, **changes: Any) -> Batch:
    fields = {"worker": "w", "attempt": 0, "keys": None, "seen": None, "create": 1000}
    return Batch(name=name, sequence=sequence, sizes=list(sizes), **{**fields, **changes})


async def until(server: PostgresServer, query: str, row: tuple[Any, ...]) -> None:
    """Wait until the query's first row is this one."""
    await asyncio.to_thread(wait_until, lambda: server.sql(query)[0] == row, f"{row} from {query}")


WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"


def sessions(server: PostgresServer) -> list[tuple[Any, ...]]:
    """The connections of every service."""
    return server.sql(
        "SELECT pid, state, xact_start FROM pg_stat_activity WHERE application_name LIKE 'pythonricing-%'"
    )


@pytest.fixture
def guest(empty_postgres: PostgresServer) -> Iterator[str]:
    """The URL of a role that may create nothing."""
    empty_postgres.sql("CREATE ROLE guest LOGIN", "SELECT")
    yield empty_postgres.url.replace("postgres@", "guest@")
    empty_postgres.sql("DROP SCHEMA IF EXISTS pythonricing CASCADE", "DROP OWNED BY guest", "DROP ROLE guest", "SELECT")


# The schema


def test_sixteen_at_once_install_the_schema_once(empty_postgres: PostgresServer) -> None:
    async def first_use() -> None:
        async with opened(empty_postgres.url) as store:
            await store.put("seats", word(), 10)
            assert trouble(store) == ""

    async def scenario() -> None:
        await asyncio.gather(*(first_use() for _ in range(16)))

    asyncio.run(scenario())
    assert empty_postgres.sql("SELECT version FROM pythonricing.installation") == [(postgres.VERSION,)]
    assert empty_postgres.sql("SELECT name, issued FROM pythonricing.counter") == [("seats", 0)]


def test_a_role_that_may_not_install_it_is_told_what_to_run(
    guest: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    for command in ("serve", "status"):
        line = fails(tmp_path, command, store=guest, store_timeout=0.5)
        assert "permission denied for database" in line
        assert "`pythonricing schema` prints" in line
    status, schema, _ = run("schema", home=tmp_path)
    assert status == 0
    postgres.sql(schema, "SELECT")
    assert "permission denied for schema" in fails(tmp_path, "status", store=guest, store_timeout=0.5)
    grants = [line[3:].strip() for line in schema.splitlines() if "GRANT" in line]
    postgres.sql(*[grant.replace("the_role", "guest") for grant in grants], "SELECT")
    assert "no counter" in fails(tmp_path, "status", "seats", store=guest)
    assert run("reset", home=tmp_path, store=guest)[1] == "default: 0 of 100\n"


def test_a_newer_schema_is_left_alone(empty_postgres: PostgresServer, tmp_path: Path) -> None:
    run("reset", home=tmp_path, store=empty_postgres.url)
    empty_postgres.sql("UPDATE pythonricing.installation SET version = version + 1", "SELECT")
    line = fails(tmp_path, "serve", store=empty_postgres.url, store_timeout=0.5)
    assert "version 6, newer than this pythonricing knows (5); upgrade it" in line


#: What matters of it: the tables, and a procedure that workers of that version call.
VERSION_2 = """
CREATE SCHEMA pythonricing;
CREATE TABLE pythonricing.counter (
  name text PRIMARY KEY, count bigint, "limit" bigint, epoch bigint NOT NULL,
  by_operator boolean NOT NULL DEFAULT false, lost bigint, deleted_until timestamptz
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE TABLE pythonricing.installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  version int NOT NULL, swept timestamptz NOT NULL DEFAULT now()
);
CREATE PROCEDURE pythonricing.delete(
  patience int, counter_name text, tombstone_seconds int, OUT outcome text, OUT reply text[]
) LANGUAGE plpgsql AS $$ BEGIN outcome := 'OK'; END $$;
CREATE PROCEDURE pythonricing.sweep(patience int, most int, pause int, OUT outcome text, OUT reply text[])
LANGUAGE plpgsql AS $$ BEGIN outcome := 'OK'; END $$;
INSERT INTO pythonricing.counter VALUES
  ('set', 4, 10, 1700000000000000, true, NULL, NULL), ('own', 4, 10, 1700000000000000, false, NULL, NULL),
  ('lost', 3, 10, 1700000000000000, true, 7, NULL),
  ('gone', NULL, NULL, 1700000000000000, true, NULL, now() + interval '1 day');
INSERT INTO pythonricing.installation (version) VALUES (2);
"""


def test_an_older_schema_is_brought_up_to_date_and_keeps_the_counters(empty_postgres: PostgresServer) -> None:
    empty_postgres.sql(VERSION_2, "SELECT")
    epoch = 1_700_000_000_000_000
    earlier = Seen(epoch - 1, 0, 2, 10)

    async def scenario() -> None:
        old = await asyncpg.connect(empty_postgres.url)
        delete = await old.prepare("CALL pythonricing.delete(1000, 'set', 1, NULL, NULL)")
        await delete.fetchrow()
        async with opened(empty_postgres.url) as store:
            assert await store.read("set", earlier) == Counter("set", 4, 10, epoch, issued=4)
            with pytest.raises(StateLost):
                await store.read("own", earlier)
            with pytest.raises(StateLost):
                await store.read("lost")
            assert (await store.put("lost", word(), None))[0] == Counter("lost", 7, 10, epoch, revision=1, issued=7)
            with pytest.raises(NoSuchCounter) as raised:
                await store.read("gone", earlier)
            assert raised.value.seen == Seen(epoch, 0, 0, 0, deleted=True)
        # A worker of that version executes nothing any more: it connects anew, and is told to upgrade.
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await delete.fetchrow()
        await old.close()

    asyncio.run(scenario())
    assert empty_postgres.sql("SELECT version FROM pythonricing.installation") == [(postgres.VERSION,)]


#: The same of the version after that.
VERSION_3 = """
CREATE SCHEMA pythonricing;
CREATE TABLE pythonricing.counter (
  name text PRIMARY KEY, count bigint NOT NULL, "limit" bigint NOT NULL, most bigint NOT NULL DEFAULT 0,
  epoch bigint NOT NULL, revision bigint NOT NULL DEFAULT 0, base bigint NOT NULL DEFAULT 0,
  lost boolean NOT NULL DEFAULT false, deleted_until timestamptz
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE TABLE pythonricing.receipt (
  name text, worker text, sequence bigint NOT NULL, reply bigint[] NOT NULL, expires timestamptz NOT NULL,
  PRIMARY KEY (name, worker)
);
CREATE TABLE pythonricing.key (
  name text, key text, epoch bigint NOT NULL, record bigint[] NOT NULL, expires timestamptz NOT NULL,
  PRIMARY KEY (name, key)
);
CREATE TABLE pythonricing.installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  version int NOT NULL, swept timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION pythonricing.recover(state pythonricing.counter, on_loss text, seen_epoch bigint)
RETURNS pythonricing.counter LANGUAGE plpgsql AS $$ BEGIN RETURN state; END $$;
CREATE PROCEDURE pythonricing.claim(patience int, counter_name text, OUT outcome text, OUT reply text[])
LANGUAGE plpgsql AS $$ BEGIN outcome := 'OK'; END $$;
INSERT INTO pythonricing.counter VALUES
  ('set', 4, 10, 3, 1700000000000000, 2, 0, false, NULL), ('lost', 7, 10, 0, 1700000000000000, 1, 0, true, NULL),
  ('gone', 0, 0, 0, 1700000000000000, 1, 9007199254740992, false, now() + interval '1 day');
INSERT INTO pythonricing.receipt VALUES
  ('set', 'old', 7, '{0,1700000000000000,2,10,3,2,NULL}', now() + interval '1 day');
INSERT INTO pythonricing.key VALUES ('set', 'k', 1700000000000000, '{2,4,10,1}', now() + interval '1 day');
INSERT INTO pythonricing.installation (version) VALUES (3);
"""


def test_a_schema_without_leases_is_brought_up_to_date_and_keeps_all(empty_postgres: PostgresServer) -> None:
    empty_postgres.sql(VERSION_3, "SELECT")
    epoch = 1_700_000_000_000_000

    async def scenario() -> None:
        old = await asyncpg.connect(empty_postgres.url)
        claim = await old.prepare("CALL pythonricing.claim(1000, 'set', NULL, NULL)")
        await claim.fetchrow()
        async with opened(empty_postgres.url) as store:
            kept = Counter("set", 4, 10, epoch, revision=2, most=3, issued=4)
            assert await store.read("set", kept.seen) == kept
            verdict = await store.claim(batch("set", 2, 1, keys=["k", None]))
            assert (verdict.replays, verdict.runs, verdict.lent) == ([Replay(2, 4, 10, True)], [(5, 5)], [])
            with pytest.raises(StateLost):
                await store.read("lost")
            with pytest.raises(NoSuchCounter) as raised:
                await store.read("gone")
            assert raised.value.seen == Seen(epoch, 1, 0, 0, deleted=True)
            assert [counter.count for counter in await store.browse(10)] == [7, 5]
            await store.put("set", word(), 1000, Rules(most=0))
            assert (await store.claim(batch("set", sequence=2, want=8))).lent == [(6, 13)]
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await claim.fetchrow()
        await old.close()

    asyncio.run(scenario())
    assert empty_postgres.sql("SELECT version FROM pythonricing.installation") == [(postgres.VERSION,)]


#: And of the one that knows leases.
VERSION_4 = """
CREATE SCHEMA pythonricing;
CREATE TABLE pythonricing.counter (
  name text PRIMARY KEY, issued bigint NOT NULL, "limit" bigint NOT NULL, most bigint NOT NULL DEFAULT 0,
  epoch bigint NOT NULL, revision bigint NOT NULL DEFAULT 0, base bigint NOT NULL DEFAULT 0,
  lost boolean NOT NULL DEFAULT false, deleted_until timestamptz, moved bigint NOT NULL DEFAULT 0,
  free int8multirange, lent bigint
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE TABLE pythonricing.receipt (
  name text, worker text, sequence bigint NOT NULL, reply bigint[] NOT NULL, expires timestamptz NOT NULL,
  held int8multirange, lent bigint, PRIMARY KEY (name, worker)
);
CREATE TABLE pythonricing.key (
  name text, key text, epoch bigint NOT NULL, record bigint[] NOT NULL, expires timestamptz NOT NULL,
  PRIMARY KEY (name, key)
);
CREATE TABLE pythonricing.installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  version int NOT NULL, swept timestamptz NOT NULL DEFAULT now()
);
CREATE PROCEDURE pythonricing.claim(patience int, counter_name text, OUT outcome text, OUT reply bigint[])
LANGUAGE plpgsql AS $$ BEGIN outcome := 'OK'; END $$;
INSERT INTO pythonricing.counter VALUES
  ('set', 20, 1000, 0, 1700000000000000, 2, 0, false, NULL, 3, '{[4,6)}', 1700000000000000),
  ('lost', 7, 10, 0, 1700000000000000, 1, 0, true, NULL, 0, NULL, NULL),
  ('gone', 0, 0, 0, 1700000000000000, 1, 9007199254740992, false, now() + interval '1 day', 0, NULL, NULL);
INSERT INTO pythonricing.receipt VALUES
  ('set', 'old', 7, '{0,1700000000000000,2,1000,0,19,20,3,0,NULL,2,20,20,0}', now() + interval '1 day'),
  ('set', 'lent', 3, '{0,1700000000000000,2,1000,0,11,18,3,0,NULL,0,2,11,18}', now() + interval '1 day');
UPDATE pythonricing.receipt SET held = '{[11,19)}', lent = 1700000000000000 WHERE worker = 'lent';
INSERT INTO pythonricing.key VALUES ('set', 'k', 1700000000000000, '{2,4,10,1}', now() + interval '1 day');
INSERT INTO pythonricing.installation (version) VALUES (4);
"""


def test_a_schema_without_holds_is_brought_up_to_date_and_keeps_all(empty_postgres: PostgresServer) -> None:
    empty_postgres.sql(VERSION_4, "SELECT")
    epoch = 1_700_000_000_000_000

    async def scenario() -> None:
        old = await asyncpg.connect(empty_postgres.url)
        claim = await old.prepare("CALL pythonricing.claim(1000, 'set', NULL, NULL)")
        await claim.fetchrow()
        async with opened(empty_postgres.url) as store:
            kept = Counter("set", 18, 1000, epoch, revision=2, issued=20, moved=3)
            assert await store.read("set", kept.seen) == kept
            verdict = await store.claim(batch("set", 2, 1, keys=["k", None]))
            assert (verdict.replays, verdict.runs) == ([Replay(2, 4, 10, True)], [(4, 4)])
            assert (await store.claim(batch("set", sequence=4, worker="lent", back=[(11, 18)]))).before == 11
            assert (await store.claim(batch("set", 8, sequence=2, seen=kept.seen))).runs == [(11, 18)]
            verdict = await store.claim(batch("set", 2, sequence=3, seen=kept.seen, wishes=[Wish("id", 60, "")]))
            assert verdict.runs == [(21, 22)]
            assert (await store.resolve("set", word(), "id", "confirm", 1))[1].given_back == 1
            with pytest.raises(StateLost):
                await store.read("lost")
            assert (await store.put("lost", word(), None, Rules(every="day")))[0].count == 7
            with pytest.raises(NoSuchCounter) as raised:
                await store.read("gone")
            assert raised.value.seen == Seen(epoch, 1, 0, 0, deleted=True)
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await claim.fetchrow()
        await old.close()

    asyncio.run(scenario())
    assert empty_postgres.sql("SELECT version FROM pythonricing.installation") == [(postgres.VERSION,)]


def test_installing_it_again_changes_nothing(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            await store.claim(batch("seats", 3))
            empty_postgres_schema()
            assert (await store.read("seats")).count == 3

    def empty_postgres_schema() -> None:
        thread = threading.Thread(target=lambda: empty_postgres.sql(postgres.SCHEMA, "SELECT"))
        thread.start()
        thread.join(PATIENCE)

    asyncio.run(scenario())


def test_a_connection_that_is_given_up_leaves_no_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver forgets a future if an attempt is cancelled after the socket and before the protocol is there."""
    connect = asyncio.SelectorEventLoop.create_connection

    async def given_up(loop: Any, factory: Callable[[], Any], *where: Any, **options: Any) -> Any:
        attempt = asyncio.current_task()

        def made() -> Any:
            loop.call_soon(attempt.cancel)  # type: ignore[union-attr]
            return factory()

        return await connect(loop, made, *where, **options)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "create_connection", given_up)
    monkeypatch.setenv("PYTHONRICING_STORE_TIMEOUT", "0.2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/db"
        done = CliRunner().invoke(main, ["status", "--store", url])
    gc.collect()  # a future complains when it goes
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


def test_without_its_driver_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "pythonricing.stores.postgres.store")
    with pytest.raises(StoreURLError, match=r"^PostgreSQL needs its driver: pip install 'pythonricing\[postgres\]'$"):
        create_store("postgresql://db", 1.0)


# Addresses


def test_urls_are_as_libpq_spells_them(empty_postgres: PostgresServer, tmp_path: Path) -> None:
    assert run("reset", home=tmp_path, store=empty_postgres.socket_url)[1] == "default: 0 of 100\n"
    where = f"host=127.0.0.1&port={empty_postgres.port}&user=postgres&sslmode=disable"
    assert run("status", home=tmp_path, store=f"postgresql:///postgres?{where}")[1] == "default: 0 of 100\n"
    line = fails(tmp_path, "status", store=f"{empty_postgres.url}?sslmode=require&password=s3cret", store_timeout=0.5)
    assert "SSL" in line
    assert "s3cret" not in line


# Transactions and locks


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_claims_are_exact_whatever_the_databases_isolation(isolation: str, empty_postgres: PostgresServer) -> None:
    empty_postgres.sql(
        "DROP DATABASE IF EXISTS isolated",
        "CREATE DATABASE isolated",
        f"ALTER DATABASE isolated SET default_transaction_isolation = '{isolation}'",
        "SELECT",
    )

    async def worker(number: int) -> list[int]:
        numbers = []
        async with opened(f"{empty_postgres.url.removesuffix('postgres')}isolated") as store:
            for sequence in range(1, 41):
                # No error passes unseen: nothing here is sent again.
                verdict = await store.claim(batch("seats", 1, sequence=sequence, worker=f"w{number}", create=250))
                if verdict.before < verdict.limit:
                    numbers.append(verdict.before + 1)
        return numbers

    async def scenario() -> None:
        numbers = await asyncio.gather(*(worker(number) for number in range(8)))
        assert sorted(chain(*numbers)) == list(range(1, 251))

    asyncio.run(scenario())


FAIL = """
CREATE SEQUENCE pythonricing.attempts;
CREATE FUNCTION pythonricing.fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('pythonricing.attempts') <= 3 THEN
    RAISE EXCEPTION 'as it happens' USING ERRCODE = '{state}';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER fail AFTER UPDATE ON pythonricing.counter FOR EACH ROW EXECUTE FUNCTION pythonricing.fail();
"""


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57P01", "57014", "53300", "25006"])
def test_what_passes_is_tried_again(state: str, empty_postgres: PostgresServer, tmp_path: Path) -> None:
    run("reset", home=tmp_path, store=empty_postgres.url)
    empty_postgres.sql(FAIL.format(state=state), "SELECT")

    async def scenario() -> None:
        counters = Counters(PostgresStore(empty_postgres.url, 20.0), Silence(), timeout=20.0)
        await counters.open()
        answers = await asyncio.gather(*(counters.claim("default") for _ in range(50)))
        assert sorted(answer.request_count for answer in answers) == list(range(1, 51))
        assert (await counters.read("default")).count == 50
        await counters.close()

    asyncio.run(scenario())
    # Nothing but sequences keeps what a transaction that failed has done.
    assert empty_postgres.sql("SELECT last_value > 3 FROM pythonricing.attempts") == [(True,)]


def test_other_errors_are_told_and_count_nothing(empty_postgres: PostgresServer, tmp_path: Path) -> None:
    run("reset", home=tmp_path, store=empty_postgres.url)
    empty_postgres.sql(FAIL.format(state="23514"), "SELECT")

    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            with pytest.raises(StoreRejected, match="as it happens"):
                await store.claim(batch("default", 1))
            assert (await store.read("default")).count == 0

    asyncio.run(scenario())


def test_a_deadlock_is_broken_and_the_claim_counted_once(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        counters = Counters(PostgresStore(empty_postgres.url, 30.0), Silence(), limit=10, timeout=30.0)
        await counters.open()
        assert (await counters.claim("default")).request_count == 1
        other = await asyncpg.connect(empty_postgres.url)
        try:
            async with other.transaction():
                await other.execute("SELECT FROM pythonricing.receipt FOR UPDATE")
                claim = asyncio.ensure_future(counters.claim("default"))
                await until(empty_postgres, WAITING, (True,))
                # The claim holds the counter and wants the receipt. One of the two is cancelled: let it be the claim.
                await other.execute("SET LOCAL deadlock_timeout = '1h'")
                await other.execute("SELECT FROM pythonricing.counter FOR UPDATE")
        finally:
            await other.close()
        assert (await claim).request_count == 2
        await counters.close()

    asyncio.run(scenario())


def test_a_locked_counter_holds_up_no_other_and_its_queue_is_left_in_time(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        async with opened(empty_postgres.url, patience=1.0) as store:
            await store.put("a", word(), 10)
            await store.put("b", word(), 10)
            other = await asyncpg.connect(empty_postgres.url)
            async with other.transaction():
                await other.execute("SELECT FROM pythonricing.counter WHERE name = 'a' FOR UPDATE")
                stuck = asyncio.create_task(store.claim(batch("a", 1)))
                await until(empty_postgres, WAITING, (True,))
                assert (await store.read("a")).count == 0
                assert (await store.claim(batch("b", 1))).before == 0
                with pytest.raises(StoreUnavailable):
                    await stuck
                await until(empty_postgres, WAITING, (False,))
            await other.close()
            await store.ready()
            assert (await store.claim(batch("a", 1))).before == 0

    asyncio.run(scenario())


SYNC = b"S\x00\x00\x00\x04"
EXECUTE = b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00"
#: Executed, and the next message is waited for.
SILENT = "SELECT count(*) > 0 FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'ClientRead'"


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda store: store.claim(batch("seats", 1, sequence=9)), id="a claim"),
        pytest.param(lambda store: store.claim(batch("seats", 1, sequence=5)), id="a batch sent again"),
        pytest.param(lambda store: store.claim(batch("seats", 1, sequence=4)), id="a batch that is late"),
        pytest.param(lambda store: store.claim(batch("gone", 1, sequence=9, create=None)), id="a claim on none"),
        pytest.param(lambda store: store.claim(batch("lost", 1, sequence=9)), id="a claim on a lost one"),
        pytest.param(lambda store: store.claim(batch("seats", 1, seen=SEEN, sequence=9)), id="a claim that marks it"),
        pytest.param(lambda store: store.read("new", create=5), id="a read that creates"),
        pytest.param(lambda store: store.put("seats", word(), 20), id="a word"),
        pytest.param(lambda store: store.put("seats", Word("w", 2**53), 10), id="a word sent again"),
        pytest.param(lambda store: store.put("seats", Word("v", 1), 10), id="a word that is late"),
        pytest.param(lambda store: store.put("lost", word(), 10, how="configure"), id="a setting of a lost one"),
        pytest.param(lambda store: store.put("gone", word(), None), id="a change of none"),
        pytest.param(lambda store: store.delete("gone", word()), id="a deletion of none"),
    ],
)
def test_a_client_that_falls_silent_before_the_end_of_its_message_holds_no_lock(
    act: Callable[[PostgresStore], Any], empty_postgres: PostgresServer
) -> None:
    holding = asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if holding.is_set() and EXECUTE in data:
                data = data.removesuffix(SYNC)
            writer.write(data)
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", empty_postgres.port)
        await asyncio.gather(forward(reader, server_writer), forward(server_reader, writer))

    async def scenario() -> None:
        async with await asyncio.start_server(between, "127.0.0.1", port := free_port()):
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            async with opened(url) as store, opened(empty_postgres.url) as other:
                await store.put("seats", Word("w", 2**53), 10)
                await store.claim(batch("seats", 1, sequence=5))
                await store.put("gone", word(), 10)
                await store.delete("gone", word())
                with pytest.raises(StateLost):
                    await store.read("lost", SEEN)
                holding.set()
                silent = asyncio.create_task(act(store))
                await until(empty_postgres, SILENT, (True,))
                for name in ("seats", "gone", "lost", "new"):
                    await other.put(name, word(), 20, how="restart")
                silent.cancel()

    asyncio.run(scenario())


# Synchronous standbys


async def commits_wait(server: PostgresServer) -> bool:
    connection = await asyncpg.connect(server.url)
    warnings: list[Any] = []
    connection.add_log_listener(lambda _, warning: warnings.append(warning))
    await connection.execute("SET statement_timeout = 200")
    await connection.execute("DO $$ BEGIN PERFORM pg_logical_emit_message(true, '', ''); COMMIT; END $$")
    await connection.close()
    return bool(warnings)


@contextmanager
def without_its_standby(server: PostgresServer) -> Iterator[None]:
    """Commits wait for a standby that isn't there."""
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'gone'", "SELECT pg_reload_conf()")
    try:
        wait_until(lambda: asyncio.run(commits_wait(server)), "commits to wait for the standby")
        yield
    finally:
        server.sql("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        wait_until(lambda: not asyncio.run(commits_wait(server)), "commits to wait no longer")


def test_what_no_standby_has_confirmed_is_no_admission(
    empty_postgres: PostgresServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    run("reset", home=tmp_path, store=empty_postgres.url)
    empty_postgres.sql(
        "CREATE ROLE hasty LOGIN SUPERUSER",
        "ALTER ROLE hasty SET statement_timeout = '500ms'",
        "ALTER ROLE hasty SET client_min_messages = 'error'",
        "SELECT",
    )
    try:
        running = service(empty_postgres.url.replace("postgres@", "hasty@"), workers=1, wait_for="/readyz")
        assert running.get("/")[0] == 200
        with without_its_standby(empty_postgres):
            assert [running.get("/")[0] for _ in range(3)] == [503] * 3
        status, answer = running.get("/")[:2]
        assert status == 200
        running.stop()
        # What was in doubt was counted at most once each.
        assert answer["request_count"] <= 5
        assert empty_postgres.sql("SELECT issued FROM pythonricing.counter") == [(answer["request_count"],)]
    finally:
        empty_postgres.terminate_backends()
        empty_postgres.sql("DROP ROLE hasty", "SELECT")


@pytest.mark.parametrize("cut_off", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda store: store.claim(batch("seats", 3)), id="a batch"),
        pytest.param(lambda store: store.put("seats", Word("w", 2**53), 20), id="a change"),
        pytest.param(lambda store: store.delete("seats", Word("w", 2**53)), id="a deletion"),
    ],
)
def test_a_wait_for_a_standby_that_is_cut_off_is_waited_anew(
    act: Callable[[PostgresStore], Any], cut_off: str, empty_postgres: PostgresServer
) -> None:
    waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            await store.put("seats", word(), 10)
            with ExitStack() as stack:
                await asyncio.to_thread(stack.enter_context, without_its_standby(empty_postgres))
                # The second time there is but the receipt to be read, which the standby may lack too.
                for _ in range(2):
                    acting = asyncio.ensure_future(act(store))
                    await until(empty_postgres, f"SELECT count(*) {waiting}", (1,))
                    await asyncio.to_thread(empty_postgres.sql, f"SELECT {cut_off}(pid) {waiting}")
                    with pytest.raises(StoreUnavailable):
                        await acting
                await asyncio.to_thread(stack.close)
            reply = await act(store)
            assert await act(store) == reply

    asyncio.run(scenario())
    assert empty_postgres.sql("SELECT count(*) FROM pythonricing.counter WHERE issued <= 3 AND revision <= 2") == [(1,)]


def test_killing_the_service_at_any_moment_leaves_no_transaction_and_no_lock(
    empty_postgres: PostgresServer, service: Callable[..., Service]
) -> None:
    def kill_under_load() -> None:
        running = service(empty_postgres.url, workers=3, limit=1_000_000, wait_for="/readyz")
        before = running.get("/")[1]["request_count"]
        calls = threading.Thread(target=lambda: asyncio.run(hammer(running.port, 32, [1] * 3000)))
        calls.start()
        wait_until(lambda: running.get("/")[1]["request_count"] > before + 500, "claims to be admitted")
        assert running.process is not None
        for pid in [running.process.pid, *running.worker_pids()]:
            os.kill(pid, signal.SIGKILL)
        running.process.wait(PATIENCE)
        calls.join(PATIENCE)

    locks = "SELECT * FROM pg_locks WHERE pid <> pg_backend_pid() AND locktype <> 'virtualxid'"
    transactions = "backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
    for _ in range(3):
        kill_under_load()
        wait_until(lambda: not sessions(empty_postgres), "the connections to be closed")
        wait_until(lambda: not empty_postgres.sql(locks), "the locks to be released")
        assert not empty_postgres.sql(f"SELECT * FROM pg_stat_activity WHERE {transactions}")


# Connections


def test_a_worker_holds_one_connection_for_one_counter_and_a_few_for_many(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            for sequence in range(1, 20):
                await store.claim(batch("seats", 1, sequence=sequence))
            assert len(await asyncio.to_thread(sessions, empty_postgres)) == 1
            await asyncio.gather(*(store.claim(batch(f"seats-{number}", 1)) for number in range(50)))
            await asyncio.gather(*(store.claim(batch(f"seats-{number}", 1, sequence=2)) for number in range(50)))
            assert 1 < len(await asyncio.to_thread(sessions, empty_postgres)) <= CONNECTIONS
            assert [(await store.read(f"seats-{number}")).count for number in range(50)] == [2] * 50

    asyncio.run(scenario())


def test_a_counters_rows_stay_where_they_are_however_often_they_change(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            for sequence in range(1, 1001):
                await store.claim(batch("seats", 1, sequence=sequence))

    asyncio.run(scenario())
    pages = "SELECT pg_relation_size(oid) / 8192 FROM pg_class WHERE oid = 'pythonricing.{}'::regclass"
    for table in ("counter", "receipt"):
        assert empty_postgres.sql(pages.format(table))[0][0] <= 4


POOLER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def pooler(empty_postgres: PostgresServer) -> Iterator[str]:
    """A URL through PgBouncer, where each transaction may meet another of two server connections."""
    if POOLER is None:
        pytest.skip("pgbouncer is not installed")
    port = free_port()
    settings = empty_postgres.folder / f"pgbouncer-{port}.ini"
    settings.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={empty_postgres.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 500\n"
    )
    log = empty_postgres.folder / "pgbouncer.log"
    with log.open("ab") as output:
        process = subprocess.Popen([POOLER, settings], stdout=output, stderr=output, **empty_postgres.identity())
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        wait_until(lambda: empty_postgres.answers(url), f"pgbouncer to start; see {log}")
        yield url
    finally:
        process.kill()
        process.wait(PATIENCE)


def test_claims_are_exact_through_a_pooler_in_transaction_mode(pooler: str, service: Callable[..., Service]) -> None:
    running = service(pooler, workers=4, limit=1500, wait_for="/readyz")
    history = asyncio.run(hammer(running.port, 32, [1, 2, 3] * 500, keys=True))
    assert set(history.statuses()) == {200, 429}
    assert history.owned() == list(range(1, 1501))
    assert [record["message"] for record in running.log() if record["level"]["no"] >= 40] == []


# Cleaning up


EXPIRE = [
    "UPDATE pythonricing.key SET expires = now()",
    "UPDATE pythonricing.receipt SET expires = now()",
    "UPDATE pythonricing.counter SET deleted_until = now() WHERE deleted_until IS NOT NULL",
    "SELECT",
]


def test_what_has_expired_counts_no_more_even_before_it_is_removed(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            await store.claim(batch("seats", 1, keys=["k"]))
            await store.put("gone", word(), 10)
            await store.delete("gone", word())
            await asyncio.to_thread(empty_postgres.sql, *EXPIRE[:2], "SELECT")
            assert (await store.claim(batch("seats", 1, keys=["k"]))).replays == [None]
            with pytest.raises(NoSuchCounter):
                await store.claim(batch("gone", 1, seen=SEEN, create=None))
            await asyncio.to_thread(empty_postgres.sql, *EXPIRE)
            with pytest.raises(StateLost):
                await store.claim(batch("gone", 1, seen=SEEN, create=None))

    asyncio.run(scenario())


def test_expired_rows_are_removed_and_no_others(
    empty_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "SWEEP_ROWS", 7)
    rows = """SELECT (SELECT count(*) FROM pythonricing.key), (SELECT count(*) FROM pythonricing.receipt),
        (SELECT count(*) FROM pythonricing.counter)"""

    async def some(store: PostgresStore, number: int) -> None:
        await store.claim(batch(f"seats-{number}", 1, keys=["k"]))
        await store.put(f"gone-{number}", word(), 10)
        await store.delete(f"gone-{number}", word())

    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            await asyncio.gather(*(some(store, number) for number in range(20)))
            await asyncio.to_thread(empty_postgres.sql, *EXPIRE)
            await asyncio.gather(*(some(store, number) for number in range(20, 25)))
        monkeypatch.setattr(postgres, "SWEEP_SECONDS", 0)
        # One expired row of each kind is in the hands of a transaction that takes its time; it is passed over.
        other = await asyncpg.connect(empty_postgres.url)
        async with other.transaction():
            for table, column in (("key", "expires"), ("receipt", "expires"), ("counter", "deleted_until")):
                await other.execute(f"SELECT FROM pythonricing.{table} WHERE {column} < now() LIMIT 1 FOR UPDATE")
            async with opened(empty_postgres.url):
                await until(empty_postgres, rows, (6, 3 * 5 + 1, 25 + 6))
        async with opened(empty_postgres.url):
            await until(empty_postgres, rows, (5, 3 * 5, 25 + 5))
        await other.close()

    asyncio.run(scenario())


def test_one_worker_cleans_up_for_all(empty_postgres: PostgresServer) -> None:
    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            await store.claim(batch("seats", 1, keys=["k"]))
            await asyncio.to_thread(empty_postgres.sql, *EXPIRE)
            sweep = ("CALL pythonricing.sweep(1000, 100, {}, NULL, NULL)", "SELECT count(*) FROM pythonricing.key")
            for pause, left in ((3600, 1), (0, 0)):
                call = sweep[0].format(pause)
                assert await asyncio.to_thread(empty_postgres.sql, call, sweep[1]) == [(left,)]

    asyncio.run(scenario())


def test_the_end_of_each_connection_is_told(empty_postgres: PostgresServer) -> None:
    ends = []

    async def scenario() -> None:
        async with opened(empty_postgres.url) as store:
            store.on_disconnect = lambda: ends.append(1)
            await asyncio.gather(*(store.claim(batch(f"seats-{number}", 1)) for number in range(50)))
            connections = len(store._sessions)
            await asyncio.to_thread(
                empty_postgres.sql,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pythonricing%'",
            )
            await asyncio.to_thread(wait_until, lambda: len(ends) == connections, "the ends to be told")

    asyncio.run(scenario())


def test_errors_name_what_happened() -> None:
    with pytest.raises(StoreError, match="no connection to postgresql://db came free"):
        asyncio.run(PostgresStore("postgresql://db", 0.01).read("seats"))
