"""Counters in Redis or Valkey: redis-py connects, hiredis carries every command over one pipelined connection.

Here for a single server; sentinel.py and cluster.py find the server, or the servers, of a larger installation.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from contextlib import suppress
from functools import partial
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError, ResponseError

from pythonricing.counting.model import (
    KEY_SECONDS,
    RECEIPT_SECONDS,
    REFUSED_KEY_SECONDS,
    TOMBSTONE_SECONDS,
    Counter,
    NoSuchCounter,
    Replay,
    Seen,
    Server,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    StoreURLError,
    Verdict,
)
from pythonricing.settings import without_password
from pythonricing.stores.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pythonricing.counting.model import Batch, How, Word
    from pythonricing.settings import OnLoss

#: Error replies of a server that will do the work in a moment, or whose role has moved elsewhere.
PASSING_ERRORS = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS", "READONLY", "MASTERDOWN")
#: Those of them after which another connection may find a better server.
LEAVING_ERRORS = ("READONLY", "MASTERDOWN")
#: Times that a command is sent on to another server, or again with its script's source.
REDIRECTIONS = 5

#: The names of the counters, a sorted set whose scores are all 0. It lies outside the counters' hash tags and so has
#: no part in their scripts (each must stay on one slot of a cluster): whoever uses a counter adds its name.
INDEX = "pythonricing:counters"
#: Seconds after which a name is added again, in case the store has lost the index.
INDEX_SECONDS = 60.0


class Script:
    """A Lua script, which begins with what all have in common, called by its SHA-1 digest."""

    def __init__(self, name: str) -> None:
        folder = resources.files(__package__)
        self.source = b"".join(folder.joinpath(part).read_bytes() for part in ("counter.lua", name))
        self.digest = hashlib.sha1(self.source).hexdigest()


CLAIM, PUT, DELETE, CLOCK = (Script(f"{name}.lua") for name in ("claim", "put", "delete", "clock"))


class Pipeline(asyncio.Protocol):
    """One connection shared by all callers: commands go out at once, replies come back in order.

    A command that stays unanswered for `timeout` seconds closes the connection, so that no reply can ever be taken
    for another command's.
    """

    def __init__(self, connection: Any, timeout: float, link: Link[Pipeline]) -> None:
        self._loop = asyncio.get_running_loop()
        self._redis_connection = connection  # redis-py closes the socket when this is collected
        self._transport: asyncio.Transport = connection._writer.transport
        self._reader = hiredis.Reader()
        self._timeout = timeout
        self._link = link
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self.closed = self._transport.is_closing()
        self._transport.set_protocol(self)

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply (hiredis.ReplyError for an error) or StoreUnavailable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the connection is closed"))
            return future
        self._waiting.append((future, self._loop.time()))
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._timeout, self._watch)
        return future

    #: Send a command whose effect must be as safe as the store is told to make it: here, the server's word is enough.
    confirmed = call

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a reply."""
        return not self._waiting

    def close(self) -> None:
        self.closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        lost = StoreUnavailable(f"the connection was lost: {error or 'closed by the server'}")
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(lost)
        self._waiting.clear()
        self._redis_connection._writer = self._redis_connection._reader = None
        self._link.lost()

    def _watch(self) -> None:
        """Give up the connection if its oldest command waits too long; one timer, however many commands."""
        self._watchdog = None
        if not self._waiting:
            return
        left = self._waiting[0][1] + self._timeout - self._loop.time()
        if left > 0:
            self._watchdog = self._loop.call_later(left, self._watch)
        else:
            self.close()


class ConfirmingPipeline(Pipeline):
    """A pipeline on which the reply to a `confirmed` command counts only once `replicas` replicas have it too.

    `waits` are the commands that wait for them; the reply to the last one says how many there are.
    WAIT blocks its connection, and is about everything that was written over this connection before. So one WAIT
    follows all commands of a write, and what is called while it is under way leaves in the next write: the rounds grow
    with load, like batches do.
    """

    def __init__(
        self, connection: Any, timeout: float, link: Link[Pipeline], replicas: int, waits: list[tuple[str | int, ...]]
    ) -> None:
        super().__init__(connection, timeout, link)
        self._replicas = replicas
        self._waits = [hiredis.pack_command(wait) for wait in waits]  # type: ignore[arg-type]
        self._unsent: list[tuple[asyncio.Future[Any], bytes]] = []
        self._round: list[tuple[asyncio.Future[Any], asyncio.Future[Any]]] = []
        self._sending = False  # a write is due: at the end of this turn of the loop or after the WAIT under way

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the connection is closed"))
            return future
        self._unsent.append((future, hiredis.pack_command(command)))  # type: ignore[arg-type]
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)
        return future

    def confirmed(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        reply = self.call(*command)
        if reply.done():
            return reply
        future: asyncio.Future[Any] = self._loop.create_future()
        self._round.append((reply, future))
        return future

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._unsent

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._send()  # to where nothing is written any more: what was not sent has no reply to expect either
        super().connection_lost(error)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        now = self._loop.time()
        self._waiting += [(future, now) for future, _ in unsent]
        data = b"".join([packed for _, packed in unsent])
        self._sending = bool(self._round)
        if self._round:
            for wait in self._waits:
                acknowledged: asyncio.Future[Any] = self._loop.create_future()
                settle = partial(self._settle, self._round) if wait is self._waits[-1] else ignore
                acknowledged.add_done_callback(settle)
                self._waiting.append((acknowledged, now))
                data += wait
            self._round = []
        if data and not self.closed:
            self._transport.write(data)
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(self._timeout, self._watch)

    def _settle(
        self, calls: list[tuple[asyncio.Future[Any], asyncio.Future[Any]]], acknowledged: asyncio.Future[Any]
    ) -> None:
        """Pass on the replies of a round, or that too few replicas have it."""
        shortfall = acknowledged.exception()
        if shortfall is None:
            reply = acknowledged.result()
            if isinstance(reply, hiredis.ReplyError):
                shortfall = StoreUnavailable(f"whether the replicas have it is not known: {reply}")
                self.close()  # its role or its settings have changed: a new connection finds out
            else:
                # WAITAOF replies how many disks have it: the server's own, and its replicas'.
                disks, replicas = reply if isinstance(reply, list) else (1, reply)
                if replicas < self._replicas or not disks:
                    shortfall = StoreUnavailable(f"{replicas} of {self._replicas} replicas have confirmed in time")
        for reply, future in calls:
            error = reply.exception() or shortfall
            if future.done():
                continue
            if error is None or (not reply.exception() and isinstance(reply.result(), hiredis.ReplyError)):
                future.set_result(reply.result())
            else:
                future.set_exception(error)
        self._sending = False
        if self._unsent and not self.closed:
            self._send()


class RedisStore:
    """A Store on Redis 7.0 or later, or Valkey.

    With `replicas`, what a batch or an operator changes counts once so many replicas have confirmed it: WAIT, or
    WAITAOF where the server syncs its append-only file with every write (`appendfsync always`), so that the disks of
    the server and of the replicas have it. With `appendfsync everysec` WAITAOF would take up to a second.

    A silent connection is given up after half of `timeout`, so that what was sent over it can still be sent again
    over a new one before anybody's patience ends.
    """

    def __init__(self, url: str, timeout: float, replicas: int = 0, on_loss: OnLoss = "halt") -> None:
        self._where = without_password(url)
        self._timeout = timeout / 2
        self._replicas = replicas
        self._on_loss = on_loss
        self._connection_class, self._connection_options = self._read_url(url)
        self._node = node_name(self._connection_options)
        self._link: Link[Pipeline] = Link(self._where, self._connect, self._was_connected)
        self._indexed: set[str] = set()
        self.on_connect: Callable[[], None] = lambda: None

    def _read_url(self, url: str) -> tuple[Any, dict[str, Any]]:
        """redis-py's kind of connection and its options. Raises StoreURLError."""
        try:
            # Only used as redis-py's reader of URLs and maker of connections.
            pool = ConnectionPool.from_url(url)
            options = {
                "socket_timeout": self._timeout * 2,
                "socket_connect_timeout": self._timeout * 2,
                **pool.connection_kwargs,
            }
            options.setdefault("client_name", f"pythonricing-{os.getpid()}")
            options["protocol"] = 2  # RESP3 would mix pushed messages with the replies
            pool.connection_class(**options)
        except (ValueError, TypeError) as error:
            raise StoreURLError(f"{self._where}: {error}") from None
        return pool.connection_class, options

    def servers(self) -> Sequence[Server]:
        return [Server(self._node, self._link.connected, max(0, self._link.reconnects), self._link.trouble)]

    def server_of(self, name: str) -> str:
        return self._node

    async def open(self) -> None:
        self._link.open()

    async def close(self) -> None:
        await self._link.close()

    async def ready(self, name: str | None = None) -> None:
        await self._link.ready()

    async def probe(self) -> list[str] | None:
        if self._replicas:
            await self._link.connection.confirmed("PING")
        return None

    async def claim(self, batch: Batch) -> Verdict:
        keys = [f"pythonricing:{{{batch.name}}}", f"pythonricing:{{{batch.name}}}:receipt:{batch.worker}"]
        if batch.keys is None:
            claims = [number for size, run in groupby(batch.sizes) for number in (sum(1 for _ in run), size)]
        else:
            claims = []
            for size, key in zip(batch.sizes, batch.keys, strict=True):
                claims += (1, size if key is None else -size)
                if key is not None:
                    keys.append(f"pythonricing:{{{batch.name}}}:key:{key}")
        reply = await self._claim(batch.name, keys, batch.sequence, batch.attempt, batch.seen, batch.create, claims)
        attempt, epoch, revision, limit, most, before, *records = reply
        raised = _raised(records) if records else None
        replays = [_replay(record) for record in records]
        return Verdict(int(attempt), int(epoch), int(revision), int(limit), int(most), int(before), replays, raised)

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        keys = [f"pythonricing:{{{name}}}", f"pythonricing:{{{name}}}:receipt:none"]
        return _counter(name, (await self._claim(name, keys, 0, 0, seen, create, []))[1:])

    async def clock(self, name: str) -> int:
        keys = [f"pythonricing:{{{name}}}"]
        return int((await self._script(CLOCK, name, keys, confirm=False))[0])

    async def put(
        self, name: str, word: Word, limit: int | None, most: int | None = None, how: How = "change"
    ) -> tuple[Counter, bool]:
        rules = ("" if limit is None else limit, "" if most is None else most, how)
        created, *words = await self._word(PUT, name, word, *rules)
        self._indexed.discard(name)  # another worker may have deleted it
        self._index(name)
        return _counter(name, words), created == b"1"

    async def delete(self, name: str, word: Word) -> Seen:
        epoch, revision = await self._word(DELETE, name, word)
        self._forget(name)
        return Seen(int(epoch), int(revision), 0, 0, deleted=True)

    async def browse(self, limit: int) -> list[Counter]:
        listed = await self._call(INDEX, "ZRANGE", INDEX, "-", "+", "BYLEX", "LIMIT", 0, limit)
        if isinstance(listed, hiredis.ReplyError):
            raise StoreRejected(str(listed))
        # Without the index's server, those that this worker has used lately.
        names = sorted(self._indexed)[:limit] if listed is None else [name.decode() for name in listed]
        fields = ("count", "limit", "epoch", "revision", "most", "lost", "deleted")
        replies = await asyncio.gather(
            *(self._call(name, "HMGET", f"pythonricing:{{{name}}}", *fields) for name in names)
        )
        counters = []
        for name, reply in zip(names, replies, strict=True):
            if reply is None:
                continue
            if isinstance(reply, hiredis.ReplyError):
                raise StoreRejected(str(reply))
            count, stored, epoch, revision, most, lost, deleted = reply
            if count is None or (deleted and not lost):
                self._forget(name)
            else:
                numbers = (int(count), int(stored), int(epoch))
                # What an earlier version has written has neither of the last two.
                counters.append(Counter(name, *numbers, lost is not None, int(revision or 0), int(most or 0)))
        return counters

    def _index(self, name: str) -> None:
        """See to it that a counter is in the index; nobody waits for that and nothing but `browse` depends on it."""
        if name in self._indexed:
            return
        if not self._indexed:
            asyncio.get_running_loop().call_later(INDEX_SECONDS, self._indexed.clear)
        self._indexed.add(name)
        self._tell("ZADD", INDEX, 0, name)

    def _forget(self, name: str) -> None:
        self._indexed.discard(name)
        self._tell("ZREM", INDEX, name)

    def _tell(self, *command: str | int) -> None:
        """Send a command to the index without waiting for its reply."""
        with suppress(StoreUnavailable):
            self._link.connection.call(*command).add_done_callback(ignore)

    async def _claim(
        self,
        name: str,
        keys: list[str],
        sequence: int,
        attempt: int,
        seen: Seen | None,
        create: int | None,
        claims: list[int],
    ) -> list[bytes]:
        created = "" if create is None else create
        remembered = (RECEIPT_SECONDS, KEY_SECONDS, REFUSED_KEY_SECONDS)
        arguments = (*self._common(seen), sequence, attempt, *remembered, created, *claims)
        try:
            reply = await self._script(CLAIM, name, keys, *arguments, confirm=sequence > 0)
        except StateLost:
            self._index(name)
            raise
        self._index(name)
        return reply

    async def _word(self, script: Script, name: str, word: Word, *arguments: int | str) -> list[bytes]:
        """Have an operator's word executed; the receipt is as safe as what it is about."""
        keys = [f"pythonricing:{{{name}}}", f"pythonricing:{{{name}}}:receipt:{word.id}"]
        return await self._script(
            script, name, keys, *self._common(word.seen), word.not_after, RECEIPT_SECONDS, *arguments
        )

    def _common(self, seen: Seen | None) -> tuple[int | str, ...]:
        """The arguments of counter.lua."""
        if seen is None:
            return ("", "", "", "", "", "", self._on_loss, TOMBSTONE_SECONDS)
        known = (seen.epoch, seen.revision, seen.count, seen.limit, seen.most, int(seen.deleted))
        return (*known, self._on_loss, TOMBSTONE_SECONDS)

    async def _script(
        self, script: Script, name: str, keys: list[str], *arguments: int | str, confirm: bool = True
    ) -> list[bytes]:
        """Run a script and split its reply into words."""
        pipeline = self._pipeline(name)
        send = pipeline.confirmed if confirm else pipeline.call
        reply = await send("EVALSHA", script.digest, len(keys), *keys, *arguments)
        if isinstance(reply, hiredis.ReplyError):
            reply = await self._script_again(script, name, (len(keys), *keys, *arguments), confirm, pipeline, reply)
        words: list[bytes] = reply.split()
        match words[0]:
            case b"MISSING":
                deletion = Seen(int(words[1]), int(words[2]), 0, 0, deleted=True) if words[1:] else None
                raise NoSuchCounter(name, deletion)
            case b"LOST":
                raise StateLost(name)
            case b"STALE":
                raise StoreRejected("a later batch of this worker was executed before this one")
            case b"LATE":
                raise StoreUnavailable("the store was reached too late")
        return words

    async def _script_again(
        self,
        script: Script,
        name: str,
        arguments: tuple[int | str, ...],
        confirm: bool,
        pipeline: Pipeline,
        error: hiredis.ReplyError,
    ) -> Any:
        """Do what the server's error asks for until it is something else. Raises StoreUnavailable or StoreRejected."""
        command: tuple[str | bytes, str | bytes] = ("EVALSHA", script.digest)
        asking = False
        for _ in range(REDIRECTIONS):
            if str(error).startswith("NOSCRIPT"):
                # With its source and not after SCRIPT LOAD: a SCRIPT FLUSH may come between two commands.
                command = ("EVAL", script.source)
            else:
                pipeline, asking = await self._redirect(name, str(error), pipeline)
            if asking:
                pipeline.call("ASKING").add_done_callback(ignore)
            reply = await (pipeline.confirmed if confirm else pipeline.call)(*command, *arguments)
            if not isinstance(reply, hiredis.ReplyError):
                return reply
            error = reply
        raise StoreUnavailable(str(error))

    async def _redirect(self, name: str, error: str, pipeline: Pipeline) -> tuple[Pipeline, bool]:
        """The connection to the server that `error` names, and whether to send ASKING first.

        Raises StoreUnavailable or StoreRejected if it names none.
        """
        if error.startswith(LEAVING_ERRORS):
            pipeline.close()
        raise (StoreUnavailable if error.startswith(PASSING_ERRORS) else StoreRejected)(error)

    def _pipeline(self, name: str) -> Pipeline:
        """The connection to the server of a counter, or of the index. Raises StoreUnavailable if there is none."""
        return self._link.connection

    def _call(self, name: str, *command: str | int) -> Awaitable[Any]:
        """Send a command that reads. Replies None where the server of `name` doesn't answer and others do."""
        return self._link.connection.call(*command)

    async def _connect(self) -> Pipeline:
        return await self._dial(self._link, self._node, self._connection_options, self._timeout * 2)

    async def _dial(self, link: Link[Pipeline], node: str, options: dict[str, Any], patience: float) -> Pipeline:
        """Connect to `node` within `patience` seconds. Raises StoreUnavailable."""
        connection = self._connection_class(**options)
        try:
            async with asyncio.timeout(patience):
                await connection.connect()
                await self._verify(connection)
                waits = await self._waiting_commands(connection) if self._replicas else None
        except (RedisError, TimeoutError, OSError) as error:
            text = str(error) or "no answer in time"
            raise StoreUnavailable(text if node in text else f"{node}: {text}") from None
        self._indexed.clear()
        if waits is None:
            return Pipeline(connection, self._timeout, link)
        return ConfirmingPipeline(connection, self._timeout, link, self._replicas, waits)

    async def _verify(self, connection: Any) -> None:
        """Raise RedisError if this server is not one to send claims to."""

    async def _waiting_commands(self, connection: Any) -> list[tuple[str | int, ...]]:
        """How to wait for the replicas: for half of the time after which a silent connection is given up."""
        milliseconds = max(2, int(self._timeout * 500))
        settings = {}
        for setting in ("appendonly", "appendfsync"):
            with suppress(ResponseError):  # it doesn't tell
                await connection.send_command("CONFIG", "GET", setting)
                settings[setting] = (await connection.read_response())[-1:]
        if settings == {"appendonly": [b"yes"], "appendfsync": [b"always"]}:
            await connection.send_command("COMMAND", "INFO", "WAITAOF")
            if (await connection.read_response())[0]:
                # A replica that is asked what it has answers before it syncs, and of its own accord once a second. The
                # WAIT asks first, so that the WAITAOF asks again after the sync.
                half = milliseconds // 2
                return [("WAIT", self._replicas, half), ("WAITAOF", 1, self._replicas, half)]
        return [("WAIT", self._replicas, milliseconds)]

    def _was_connected(self) -> None:
        self.on_connect()


def node_name(options: Mapping[str, Any]) -> str:
    """How a server is called in messages and metrics: host:port, or the path of its socket."""
    path: str | None = options.get("path")
    return path or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def ignore(reply: asyncio.Future[Any]) -> None:
    """Nothing depends on this reply, an error neither."""
    if not reply.cancelled():
        reply.exception()


def _counter(name: str, words: list[bytes]) -> Counter:
    """A counter from its epoch, revision, limit, largest claim and count, and perhaps what it was before a loss."""
    raised = _raised(words)
    epoch, revision, limit, most, count = map(int, words)
    return Counter(name, count, limit, epoch, False, revision, most, raised)


def _replay(record: bytes) -> Replay | None:
    if record == b"-":
        return None
    _, size, count, limit, admitted = map(int, record.split(b":"))
    return Replay(size, count, limit, bool(admitted))


def _raised(records: list[bytes]) -> int | None:
    """The count before the script raised it; taken out of the records."""
    return int(records.pop()[1:]) if records[-1].startswith(b"^") else None
