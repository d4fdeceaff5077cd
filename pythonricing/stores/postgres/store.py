"""Counters in PostgreSQL: each batch is one procedure call, one round trip and one transaction.

A worker holds one connection, and opens up to four when several counters are claimed at once: a batch waits in the
database for the counter's row and for the disk, and another counter's batch need not wait behind it. More would not
help a single counter, whose batches follow each other, and 16 workers stay below PostgreSQL's default of 100.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from functools import partial
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from pythonricing.counting.model import (
    KEEP,
    KEY_SECONDS,
    RECEIPT_SECONDS,
    REFUSED_KEY_SECONDS,
    TOMBSTONE_SECONDS,
    Counter,
    NoSuchCounter,
    NoSuchNumber,
    NumberLeased,
    Outcome,
    Replay,
    Resolution,
    Rules,
    Seen,
    Server,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    Verdict,
    ZoneUnknown,
)
from pythonricing.counting.store import reread
from pythonricing.counting.windows import window
from pythonricing.settings import without_password
from pythonricing.stores.link import Link, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pythonricing.counting.model import Action, Batch, How, Run, Wish, Word
    from pythonricing.counting.windows import Window
    from pythonricing.settings import OnLoss

SCHEMA = resources.files(__package__).joinpath("schema.sql").read_text()
#: The version of the schema that this code speaks; schema.sql ends with it.
VERSION = 5
#: Connections that a worker opens at most.
CONNECTIONS = 4
#: Seconds after which a worker looks for expired rows; one worker finds them, the others find nothing to do.
SWEEP_SECONDS = 60
#: Rows of a table removed in one transaction.
SWEEP_ROWS = 1000

CHECK = "SELECT version, pg_backend_pid() AS pid FROM pythonricing.installation"
# Numbers travel in arrays of text: asyncpg knows text[] by itself, and would ask each new connection what bigint[] is.
CLAIM = (
    f"CALL pythonricing.claim($1, $2, $3, $4, $5, $6, {RECEIPT_SECONDS}, {TOMBSTONE_SECONDS}, {KEY_SECONDS}, "
    f"{REFUSED_KEY_SECONDS}, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::text[]::bigint[], "
    "$19::text[]::bigint[], $20::text[]::bigint[], $21::text[]::bigint[], $22, $23, NULL, NULL)"
)
PUT = (
    "CALL pythonricing.put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, "
    "$21, $22, NULL, NULL)"
)
RESOLVE = (
    "CALL pythonricing.resolve($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, "
    "NULL, NULL)"
)
GIVE_BACK = (
    "CALL pythonricing.give_back($1, $2, $3, $4, $5, $6, $7, $8::text[]::bigint[], $9, $10, $11, $12, $13, $14, $15, "
    "$16, $17, NULL, NULL)"
)
DELETE = "CALL pythonricing.delete($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, NULL, NULL)"
CLOCK = "SELECT pythonricing.clock() AS clock"
#: What is told of each counter, and whether it has to be renewed, or holds are due, before that is true.
BROWSE = """
SELECT array_agg(name) AS names, array_agg(lost) AS lost,
  array_agg(array_to_json(pythonricing.told(counter, NULL, 0))::text) AS told,
  array_agg(coalesce(began IS NOT NULL AND NOT lost AND (
    (ends > 0 AND ends <= pythonricing.clock()) OR due <= pythonricing.clock() / 1000000), false)) AS stale
FROM (
  SELECT c AS counter, c.* FROM pythonricing.counter c
  WHERE (deleted_until IS NULL OR lost) AND name COLLATE "C" > $2 ORDER BY name COLLATE "C" LIMIT $1::bigint
) AS first
"""
INSPECT = """
SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
  current_setting('synchronous_commit') AS synchronous_commit, current_setting('full_page_writes') AS full_page_writes,
  (SELECT count(*) FROM pg_stat_replication)::text AS standbys,
  (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))::text AS synchronous
"""
SWEEP = "CALL pythonricing.sweep($1, $2, $3, NULL, NULL)"

#: SQLSTATEs, or how they begin, of what passes: lost connections, transactions to be run again, no connection to spare,
#: a lock not had in time, a shutdown or restart. (PostgreSQL documentation, appendix A.)
PASSING_ERRORS = ("08", "40", "53300", "55P03", "57")
#: Those after which another connection may find a better server, or install the schema that is gone: a standby,
#: an unknown procedure, schema or table.
LEAVING_ERRORS = ("25006", "42883", "3F000", "42P01")
#: Where PostgreSQL warns that it no longer waits for a synchronous standby to have what was committed; its SQLSTATE
#: is that of any warning (01000), and its text is translated.
UNCONFIRMED = "SyncRepWaitForLSN"


class Session:
    """One connection, for one command at a time; a command unanswered for `timeout` seconds closes it."""

    def __init__(self, connection: Any, claim: Any, timeout: float) -> None:
        self._connection = connection
        self._claim = claim
        self._timeout = timeout
        self._unconfirmed = False
        connection.add_log_listener(self._warned)

    @property
    def closed(self) -> bool:
        return bool(self._connection.is_closed())

    def close(self) -> None:
        self._connection.terminate()

    async def run(self, statement: str, arguments: Sequence[object]) -> Any:
        """Run a statement and return its first row."""
        watchdog = asyncio.get_running_loop().call_later(self._timeout, self.close)
        self._unconfirmed = False
        try:
            if statement is CLAIM and self._claim is not None:
                row = await self._claim.fetchrow(*arguments)
            else:
                row = await self._connection.fetchrow(statement, *arguments)
        except asyncpg.PostgresError as error:
            raise self._translated(error) from None
        except Exception as error:
            # Whatever else goes wrong in the driver leaves open whether the server has executed the command.
            self.close()
            raise StoreUnavailable(f"the connection was lost: {error}") from None
        except BaseException:
            self.close()
            raise
        finally:
            watchdog.cancel()
        if self._unconfirmed:
            # Sent again, it finds its receipt, and its commit waits for the standby anew.
            raise StoreUnavailable("PostgreSQL no longer waited for its synchronous standby")
        return row

    def _warned(self, _: object, warning: Any) -> None:
        # Comes before the reply to the command.
        if warning.server_source_function == UNCONFIRMED:
            self._unconfirmed = True

    def _translated(self, error: asyncpg.PostgresError) -> StoreError:
        state = str(error.sqlstate)
        if state.startswith(LEAVING_ERRORS) or getattr(error, "severity_en", None) in ("FATAL", "PANIC"):
            self.close()
        passing = state.startswith((*PASSING_ERRORS, *LEAVING_ERRORS))
        return (StoreUnavailable if passing else StoreRejected)(f"{error} ({state})")


class PostgresStore:
    """A Store on PostgreSQL 14 or later.

    A silent connection is given up after half of `timeout`, so that what was sent over it can still be sent again
    over a new one before anybody's patience ends.
    """

    def __init__(self, url: str, timeout: float, on_loss: OnLoss = "halt") -> None:
        self.on_connect: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        self._on_loss = on_loss
        self._url = url
        self._where = without_password(url)
        self._timeout = timeout / 2
        # In milliseconds, and a little earlier than the connection is given up; 0 would mean for ever.
        self._patience = max(1, int(self._timeout * 900))
        self._links: list[Link[Session]] = []
        for number in range(CONNECTIONS):
            connect = partial(self._connect, number)
            self._links.append(Link(self._where, connect, self._was_connected, lambda: self.on_disconnect()))
        self._unopened = self._links[::-1]
        self._connected = asyncio.Event()
        self._sessions: set[Session] = set()
        self._idle: asyncio.Queue[Session] = asyncio.Queue()  # in turns, so that closed ones come up and are dropped
        self._sweeper: asyncio.Task[None] | None = None

    def servers(self) -> Sequence[Server]:
        reconnects = sum(max(0, link.reconnects) for link in self._links)
        return [Server("", self._connected.is_set(), reconnects, self._links[0].trouble)]

    def server_of(self, name: str) -> str:
        return ""

    async def open(self) -> None:
        if self._sweeper is None:
            self._unopened.pop().open()
            self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        if self._sweeper is not None:
            await stop(self._sweeper)
        for link in self._links:
            await link.close()

    async def ready(self, name: str | None = None) -> None:
        await self._connected.wait()

    async def probe(self) -> None:
        return None

    def _was_connected(self) -> None:
        if len(self._sessions) == 1:  # not for those that are opened because there is much to do
            self.on_connect()

    async def claim(self, batch: Batch) -> Verdict:
        groups: list[tuple[int, int, str | None]]
        wishes = None
        if batch.wishes is not None:
            wishes = [word for wish in batch.wishes for word in _wish(wish)]
        if batch.keys is None and wishes is None:
            groups = [(sum(1 for _ in group), size, None) for size, group in groupby(batch.sizes)]
        else:
            keys = batch.keys or [None] * len(batch.sizes)
            groups = [(1, size, key) for size, key in zip(batch.sizes, keys, strict=True)]
        lease = (batch.want, _numbers(batch.back), _numbers(batch.held))
        reply = await self._claim(
            batch.name, batch.worker, batch.sequence, batch.attempt, batch.seen, batch.create, lease, groups, wishes
        )
        attempt, epoch, revision, limit, most, before, issued, moved, out = map(int, reply[:9])
        sale, runs, lent, *records = _parts(reply, 10)
        return Verdict(
            attempt,
            epoch,
            revision,
            limit,
            most,
            before,
            issued,
            moved,
            out,
            _runs(runs),
            _runs(lent),
            [_replay(record, bool(sale)) if record else None for record in records],
            reply[9] and int(reply[9]),
            **_sale(*sale) if sale else {},
        )

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        async def read() -> Counter:
            return _counter(name, await self._claim(name, "", 0, 0, seen, create, (0, None, None), [], None))

        return await reread(read)

    async def clock(self, name: str) -> int:
        return int((await self._run(CLOCK))["clock"])

    async def put(
        self, name: str, word: Word, limit: int | None, rules: Rules = KEEP, how: How = "change"
    ) -> tuple[Counter, bool]:
        new = (limit, rules.most, rules.each, rules.every, rules.zone)
        created, *told = await self._say(PUT, name, word, *new, how, self._on_loss)
        return _counter(name, told), created == "1"

    async def resolve(
        self, name: str, word: Word, id: str, action: Action, number: int | None = None
    ) -> tuple[Resolution | None, Counter]:
        outcome, size, length, *rest = await self._say(RESOLVE, name, word, id, action, number, self._on_loss)
        numbers, told = rest[: int(length)], rest[int(length) :]
        counter = msgspec.structs.replace(_counter(name, told), settled=outcome.endswith("+"))
        if outcome == "none":
            return None, counter
        became = msgspec.convert(outcome.removesuffix("+"), Outcome)
        return Resolution(became, int(size), tuple(_runs(numbers))), counter

    async def give_back(self, name: str, word: Word, runs: Sequence[Run]) -> tuple[int, Counter]:
        given, *told = await self._say(GIVE_BACK, name, word, _numbers(runs) or [], self._on_loss)
        return int(given), _counter(name, told)

    async def delete(self, name: str, word: Word) -> Seen:
        return _deletion(await self._say(DELETE, name, word))

    async def browse(self, limit: int, after: str = "", *, reachable_only: bool = False) -> list[Counter]:
        row = await self._run(BROWSE, limit, after)
        columns = ("names", "lost", "told", "stale")
        counters = []
        for name, lost, told, stale in zip(*(row[column] or () for column in columns), strict=True):
            counter = msgspec.structs.replace(_counter(name, msgspec.json.decode(told)), lost=lost)
            if stale:
                with contextlib.suppress(NoSuchCounter, StateLost, ZoneUnknown):  # it is as it was before that
                    counter = await self.read(name)
            counters.append(counter)
        return counters

    async def inspect(self) -> dict[str, dict[str, str]]:
        before = time.time()
        clock = await self.clock("") - int((before + time.time()) / 2 * 1e6)
        return {"postgresql": {**await self._run(INSPECT), "clock": str(clock)}}

    async def _claim(
        self,
        name: str,
        worker: str,
        sequence: int,
        attempt: int,
        seen: Seen | None,
        create: int | None,
        lease: tuple[int, list[str] | None, list[str] | None],
        groups: list[tuple[int, int, str | None]],
        wishes: list[str] | None,
    ) -> list[Any]:
        times = [str(times) for times, _, _ in groups]
        sizes = [str(size) for _, size, _ in groups]
        keys = [key for _, _, key in groups]
        batch = (name, worker, sequence, attempt, create, self._on_loss)
        return await self._call(CLAIM, *batch, *_columns(seen), *lease, times, sizes, keys, wishes)

    async def _say(self, statement: str, name: str, word: Word, *options: object) -> list[Any]:
        """Run a procedure that executes an operator's word, or resolves a hold."""
        seconds = (RECEIPT_SECONDS, TOMBSTONE_SECONDS)
        return await self._call(statement, name, word.id, word.not_after, *seconds, *options, *_columns(word.seen))

    async def _run(self, statement: str, *arguments: object) -> Any:
        """Run a statement on an idle session; open another one if all are at work."""
        session = await self._session()
        try:
            return await session.run(statement, arguments)
        finally:
            if not session.closed:
                self._idle.put_nowait(session)

    async def _call(self, statement: str, *arguments: object) -> list[Any]:
        """Run a procedure about a counter. Returns its reply: words, and None for what there isn't."""
        windows: dict[tuple[str, str], Window] = {}
        calendar: list[str] | None = None
        while True:
            row = await self._run(statement, self._patience, calendar, *arguments)
            reply: list[Any] = row["reply"] or []
            match row["outcome"]:
                case "OK":
                    return reply
                case "OVER":  # a window of the calendar; asked again for the same one, time has gone on
                    now, every, zone = reply
                    windows[every, zone] = window(every, zone, int(now))
                    calendar = [str(part) for rule, ends in windows.items() for part in (*rule, *ends)]
                case "MISSING":
                    raise NoSuchCounter(str(arguments[0]), _deletion(reply) if reply else None)
                case "LOST":
                    raise StateLost(arguments[0])
                case "STALE":
                    raise StoreRejected("a later batch of this worker was executed before this one")
                case "LATE":
                    raise StoreUnavailable("the word came too late")
                case "NEVER":
                    raise NoSuchNumber(arguments[0])
                case "LEASED":
                    raise NumberLeased("whether these numbers were given is known only once a lease is over")

    async def _session(self) -> Session:
        """An idle session. Raises StoreUnavailable if none comes free in time; nothing was sent then."""
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    if self._idle.empty() and self._unopened:
                        self._unopened.pop().open()
                    session = await self._idle.get()
                    if not session.closed:
                        return session
        except TimeoutError:
            raise StoreUnavailable(f"no connection to {self._where} came free in time") from None

    async def _sweep(self) -> None:
        """Remove expired rows now and then, a few at a time, until none are left."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))
            with contextlib.suppress(StoreError):
                await self.ready()
                while (await self._run(SWEEP, self._patience, SWEEP_ROWS, SWEEP_SECONDS))["reply"] != ["0"]:
                    pass

    async def _connect(self, link: int) -> Session:
        try:
            async with asyncio.timeout(self._timeout * 2):
                connection = await asyncpg.connect(
                    self._url,
                    statement_cache_size=0,
                    server_settings={"application_name": f"pythonricing-{os.getpid()}"},
                )
                try:
                    session = Session(connection, await _prepare(connection), self._timeout)
                except BaseException:
                    connection.terminate()
                    raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            raise StoreUnavailable(str(error) or "no answer in time") from None

        def lost(_: object) -> None:
            self._sessions.discard(session)
            if not self._sessions:
                self._connected.clear()
            self._links[link].lost()

        connection.add_termination_listener(lost)
        self._sessions.add(session)
        self._idle.put_nowait(session)
        self._connected.set()
        return session


def _columns(seen: Seen | None) -> tuple[Any, ...]:
    if seen is None:
        return (None,) * 8
    more = None
    if seen.each or seen.ends or seen.resolved or seen.every:
        more = [str(seen.resolved), str(seen.each), seen.every, seen.zone, str(seen.ends)]
    return seen.epoch, seen.revision, seen.issued, seen.limit, seen.most, seen.deleted, seen.moved, more


def _wish(wish: Wish | None) -> tuple[str, str, str]:
    return ("", "0", "") if wish is None else (wish.hold, str(wish.seconds), wish.claimant)


def _numbers(runs: Sequence[Run]) -> list[str] | None:
    """The first and the last numbers of runs; None if there are none."""
    return [str(number) for run in runs for number in run] or None


def _integers(words: Sequence[str | None]) -> list[Any]:
    return [word and int(word) for word in words]


def _runs(numbers: Sequence[str]) -> list[Run]:
    """Runs from their first and last numbers."""
    found = list(map(int, numbers))
    return list(zip(found[::2], found[1::2], strict=True))


def _parts(words: Sequence[str], at: int) -> Iterator[Sequence[str]]:
    """What a reply has after one another, from there on, each with its length before it."""
    while at < len(words):
        first, at = at + 1, at + 1 + int(words[at])
        yield words[first:at]


def _replay(record: Sequence[str], more: bool) -> Replay:
    """The record of a key, in which a hold and a claimant may come before the runs."""
    size, count, limit, admitted = map(int, record[:4])
    runs = tuple(_runs(record[7 if more else 4 :]))
    hold, expires, claimant = record[4:7] if more else ("", "0", "")
    return Replay(size, count, limit, admitted == 1, runs, hold, int(expires), admitted == 2, claimant)


def _sale(
    each: str,
    every: str,
    zone: str,
    ends: str,
    resolved: str,
    due: str,
    now: str,
    expired: str,
    held: str,
    *capped: str,
) -> dict[str, Any]:
    """What a verdict tells of a counter with holds, give-backs, claimants or windows."""
    numbers = {"each": each, "ends": ends, "resolved": resolved, "due": due, "now": now}
    numbers |= {"expired": expired, "held": held}
    words = {"every": every, "zone": zone, "capped": tuple(map(int, capped))}
    return {**{name: int(number) for name, number in numbers.items()}, **words}


def _counter(name: str, told: Sequence[str | None]) -> Counter:
    epoch, revision, limit, most, count, issued, moved, leased, raised = _integers(told[:9])
    counter = (name, count, limit, epoch, False, revision, most, raised, issued, moved, leased)
    if len(told) == 9:
        return Counter(*counter)
    each, every, zone, *rest = told[9:]
    return Counter(*counter, int(each or 0), every or "", zone or "", *_integers(rest))


def _deletion(reply: Sequence[str]) -> Seen:
    epoch, revision = map(int, reply)
    return Seen(epoch, revision, 0, 0, deleted=True)


async def _prepare(connection: Any) -> Any:
    """Install the schema, or a newer one, if need be, and prepare the claim unless a pooler stands between.

    A pooler in transaction mode hands each transaction to whichever connection is free, where a statement prepared by
    name may be unknown, or another one of the same name. It is told by the server's process, which is not the one that
    answered; statements are then parsed each time (asyncpg keeps that on one connection), in a second round trip.
    """
    try:
        installed = await _installed(connection)
        if installed is None or installed["version"] < VERSION:
            await connection.execute(SCHEMA)
            installed = await _installed(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreRejected(f"{error}; let a role with the rights run what `pythonricing schema` prints") from None
    if installed["version"] > VERSION:
        raise StoreRejected(
            f"its schema has version {installed['version']}, newer than this pythonricing knows ({VERSION}); upgrade it"
        )
    direct = installed["pid"] == connection.get_server_pid()
    return await connection.prepare(CLAIM, name="pythonricing_claim") if direct else None


async def _installed(connection: Any) -> Any:
    try:
        return await connection.fetchrow(CHECK)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return None
