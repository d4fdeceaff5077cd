"""Counters in Redis or Valkey: every batch is one script, and routes/ finds the server that it is for."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

import hiredis
import msgspec

from pythonricing.counting.model import (
    KEEP,
    KEY_SECONDS,
    RECEIPT_SECONDS,
    REFUSED_KEY_SECONDS,
    Counter,
    NoSuchCounter,
    NoSuchNumber,
    NumberLeased,
    Outcome,
    Replay,
    Resolution,
    Rules,
    Seen,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    Verdict,
    ZoneUnknown,
)
from pythonricing.counting.store import reread
from pythonricing.counting.windows import window
from pythonricing.stores.link import stop
from pythonricing.stores.redis.pipeline import ignore
from pythonricing.stores.redis.routes import route_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pythonricing.counting.model import Action, Batch, How, Run, Word
    from pythonricing.settings import OnLoss
    from pythonricing.stores.redis.connector import Dial
    from pythonricing.stores.redis.pipeline import Pipeline

#: Times that a command is sent on to another server, or again with its script's source.
REDIRECTIONS = 5

#: The names of the counters, a sorted set whose scores are all 0. It lies outside the counters' hash tags and so has
#: no part in their scripts (each must stay on one slot of a cluster): whoever uses a counter adds its name.
INDEX = "pythonricing:counters"
#: Names among which there is one on every shard of a cluster, as good as certainly.
INSPECTED = 256
#: Seconds after which a name is added again, in case the store has lost the index.
INDEX_SECONDS = 60.0


class Script:
    """A Lua script: its name, which its parts go by, and the parts that it is made of; called by its SHA-1 digest."""

    def __init__(self, name: str, *parts: str) -> None:
        folder = resources.files(__package__)
        texts = [folder.joinpath(f"{part}.lua").read_bytes() for part in (*parts, name)]
        self.source = f"local script, stored, receipt = '{name}'\n".encode() + b"".join(texts)
        self.digest = hashlib.sha1(self.source).hexdigest()


CLAIM, CLOCK, PUT, DELETE, RESOLVE, GIVE_BACK, LOOK = SCRIPTS = (
    Script("claim", "quick", "counter", "holds"),
    Script("clock", "counter"),
    *(Script(name, "counter", "holds") for name in ("put", "delete", "resolve", "give_back", "look")),
)
SOURCES: dict[object, bytes] = {script.digest: script.source for script in SCRIPTS}
#: The place of a script's argument that has windows of the calendar at its end.
WINDOW = 8


class RedisStore:
    """A Store on Redis 7.0 or later, or Valkey.

    With `replicas`, what a batch or an operator changes counts once so many replicas have confirmed it: WAIT, or
    WAITAOF where the server syncs its append-only file with every write (`appendfsync always`), so that the disks of
    the server and of the replicas have it. With `appendfsync everysec` WAITAOF would take up to a second.

    A silent connection is given up after half of `timeout`, so that what was sent over it can still be sent again
    over a new one before anybody's patience ends.
    """

    def __init__(
        self, url: str, timeout: float, replicas: int = 0, on_loss: OnLoss = "halt", dial: Dial | None = None
    ) -> None:
        self.on_connect: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        self._timeout = timeout / 2
        self._on_loss = on_loss
        self._route = route = route_to(url, self._timeout, replicas, dial)
        route.on_connect = self._connected
        route.on_disconnect = lambda: self.on_disconnect()
        # The route's own words, without a layer of ours before each batch.
        self.servers, self.server_of, self.probe = route.servers, route.server_of, route.probe
        self.open, self.ready = route.open, route.ready
        self._indexed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in [*self._tasks]:
            await stop(task)
        await self._route.close()

    async def claim(self, batch: Batch) -> Verdict:
        keys = [f"pythonricing:{{{batch.name}}}", f"pythonricing:{{{batch.name}}}:receipt:{batch.worker}"]
        claims: list[int | str]
        if batch.keys is None and batch.wishes is None:
            claims = [number for size, run in groupby(batch.sizes) for number in (sum(1 for _ in run), size)]
        else:
            claims = []
            nothing: list[None] = [None] * len(batch.sizes)
            for size, key, wish in zip(batch.sizes, batch.keys or nothing, batch.wishes or nothing, strict=True):
                claims += (0 if wish else 1, size if key is None else -size)
                if wish is not None:
                    claims += (wish.hold, wish.seconds, wish.claimant)
                if key is not None:
                    keys.append(f"pythonricing:{{{batch.name}}}:key:{key}")
        lease = (batch.want, _text(batch.back), _text(batch.held), "" if batch.wishes is None else 1)
        reply = await self._claim(
            batch.name, keys, batch.worker, batch.sequence, batch.attempt, batch.seen, batch.create, lease, claims
        )
        attempt, epoch, revision, limit, most, before, issued, moved, out, runs, lent, sale, *records = reply
        raised = _raised(records) if records else None
        if sale == b"-":
            more: dict[str, Any] = {}
        else:
            *numbers, every, zone, capped = sale.decode().split(":")
            each, ends, resolved, held, _, due, now, expired = map(int, numbers)
            places = tuple(map(int, capped.split(","))) if capped else ()
            more = {"each": each, "every": every, "zone": zone, "ends": ends, "resolved": resolved, "due": due}
            more |= {"now": now, "expired": expired, "held": held, "capped": places}
        return Verdict(
            int(attempt),
            int(epoch),
            int(revision),
            int(limit),
            int(most),
            int(before),
            int(issued),
            int(moved),
            int(out),
            _runs(runs),
            _runs(lent),
            [_replay(record) for record in records],
            raised,
            **more,
        )

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        keys = [f"pythonricing:{{{name}}}", f"pythonricing:{{{name}}}:receipt:none"]

        async def read() -> Counter:
            reply = await self._claim(name, keys, "", 0, 0, seen, create, (0, "", "", ""), [])
            return _counter(name, [*reply[1:9], *reply[11:]])

        return await reread(read)

    async def clock(self, name: str) -> int:
        keys = [f"pythonricing:{{{name}}}"]
        return int((await self._script(CLOCK, name, keys, confirm=False))[0])

    async def put(
        self, name: str, word: Word, limit: int | None, rules: Rules = KEEP, how: How = "change"
    ) -> tuple[Counter, bool]:
        kept = ["" if rule is None else rule for rule in (limit, rules.most, rules.each)]
        chosen = ["" if rule is None else rule or "-" for rule in (rules.every, rules.zone)]
        created, *words = await self._word(PUT, name, word, *kept, *chosen, how)
        self._indexed.discard(name)  # another worker may have deleted it
        self._index(name)
        return _counter(name, words), created == b"1"

    async def delete(self, name: str, word: Word) -> Seen:
        # It leaves the index when it is browsed: a repeated word must not take out what was created since.
        epoch, revision = await self._word(DELETE, name, word)
        return Seen(int(epoch), int(revision), 0, 0, deleted=True)

    async def resolve(
        self, name: str, word: Word, id: str, action: Action, number: int | None = None
    ) -> tuple[Resolution | None, Counter]:
        options = (*self._common(word.seen), "", word.not_after, id, action, "" if number is None else number)
        outcome, size, runs, *words = await self._script(RESOLVE, name, [f"pythonricing:{{{name}}}"], *options)
        self._index(name)
        if outcome == b"none":
            return None, _counter(name, words)
        counter = msgspec.structs.replace(_counter(name, words), settled=outcome.endswith(b"+"))
        became = msgspec.convert(outcome.decode().removesuffix("+"), Outcome)
        return Resolution(became, int(size), tuple(_runs(runs))), counter

    async def give_back(self, name: str, word: Word, runs: Sequence[Run]) -> tuple[int, Counter]:
        # Below 1 there are none.
        wanted = _text([(max(0, first), max(0, last)) for first, last in runs])
        given, *words = await self._word(GIVE_BACK, name, word, wanted)
        self._index(name)
        return int(given), _counter(name, words)

    async def browse(self, limit: int, after: str = "", *, reachable_only: bool = False) -> list[Counter]:
        counters: list[Counter] = []
        while wanted := limit - len(counters):
            start = f"({after}" if after else "-"
            listed = await self._ask(
                INDEX, "ZRANGE", INDEX, start, "+", "BYLEX", "LIMIT", 0, wanted, reachable_only=reachable_only
            )
            if listed is None:  # without the index's server, those that this worker has used lately
                names = sorted(name for name in self._indexed if name > after)[:wanted]
            else:
                names = [name.decode() for name in listed]
            counters += await self._named(names, reachable_only)
            if len(names) < wanted:
                break
            after = names[-1]
        return counters

    async def _named(self, names: list[str], reachable_only: bool) -> list[Counter]:
        """Those of these counters that there are; others leave the index. See browse."""
        counters = []
        looked = await asyncio.gather(*(self._look(name, reachable_only) for name in names))
        for name, counter in zip(names, looked, strict=True):
            if isinstance(counter, Counter):
                counters.append(counter)
            elif counter:
                self._forget(name)
        return counters

    async def _look(self, name: str, reachable_only: bool) -> Counter | bool:
        """A counter as it is, lost or not; or whether it is certain that it is gone."""
        try:
            async with self._patience(name, reachable_only):
                return await reread(lambda: self._listed(name))
        except NoSuchCounter:
            return True
        except StoreUnavailable:
            if reachable_only and self._route.spread:
                return False
            raise

    async def _listed(self, name: str) -> Counter:
        """A counter as it is, lost or not."""
        keys, options = [f"pythonricing:{{{name}}}"], (*self._common(None), "")
        try:
            words = await self._script(LOOK, name, keys, *options, "", confirm=False)
        except ZoneUnknown:
            words = await self._script(LOOK, name, keys, *options, "stored", confirm=False)
        if words[0] == b"GONE":
            raise NoSuchCounter(name)
        lost, *words = words
        return msgspec.structs.replace(_counter(name, words), lost=lost == b"1")

    async def inspect(self) -> dict[str, dict[str, str]]:
        names = {self.server_of(name): name for name in map(str, range(INSPECTED))}  # some are on each shard
        return dict(zip(names, await asyncio.gather(*map(self._inspect, names.values())), strict=True))

    async def _inspect(self, name: str) -> dict[str, str]:
        """What the server of this name says; nothing if it doesn't answer while others do."""
        try:
            async with asyncio.timeout(self._timeout / 2 if self._route.spread else None):
                info = await self._ask(name, "INFO")
                found = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
                for setting in ("appendonly", "appendfsync", "dir"):
                    with suppress(StoreRejected):  # managed services don't tell
                        if reply := await self._ask(name, "CONFIG", "GET", setting):
                            found[setting] = reply[-1].decode()
                before = time.time()
                found["clock"] = str(await self.clock(name) - int((before + time.time()) / 2 * 1e6))
                return found
        except (StoreUnavailable, TimeoutError):
            if self._route.spread:
                return {}
            raise

    def _connected(self) -> None:
        self._indexed.clear()
        self.on_connect()

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
            pipeline = self._route.pipeline(INDEX)
            pipeline.call(*command).add_done_callback(partial(self._told, pipeline, command))

    def _told(self, pipeline: Pipeline, command: tuple[str | int, ...], reply: asyncio.Future[Any]) -> None:
        if reply.cancelled() or reply.exception() or not isinstance(reply.result(), hiredis.ReplyError):
            return

        async def send_on() -> None:
            with suppress(StoreError):
                await self._again(INDEX, command, reply.result(), pipeline)

        task = asyncio.create_task(send_on())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, name: str, *command: str | int, reachable_only: bool = False) -> Any:
        """Send a command that reads. None where the server of `name` doesn't answer, if others do and may be enough."""
        try:
            async with self._patience(name, reachable_only):
                pipeline = self._route.pipeline(name)
                reply = await pipeline.call(*command)
                if isinstance(reply, hiredis.ReplyError):
                    reply = await self._again(name, command, reply, pipeline)
                return reply
        except StoreUnavailable:
            if reachable_only and self._route.spread:
                return None
            raise

    @asynccontextmanager
    async def _patience(self, name: str, reachable_only: bool) -> AsyncIterator[None]:
        """How long the server of a counter is waited for: where others are asked too, not for all of the time-out."""
        if not (reachable_only and self._route.spread):
            await self.ready(name)
            yield
            return
        try:
            async with asyncio.timeout(self._timeout / 2):
                yield
        except TimeoutError:
            raise StoreUnavailable(f"{self.server_of(name)} did not answer in time") from None

    async def _claim(
        self,
        name: str,
        keys: list[str],
        worker: str,
        sequence: int,
        attempt: int,
        seen: Seen | None,
        create: int | None,
        lease: tuple[int | str, ...],
        claims: list[int | str],
    ) -> list[bytes]:
        created = "" if create is None else create
        remembered = (RECEIPT_SECONDS, KEY_SECONDS, REFUSED_KEY_SECONDS)
        arguments = (*self._common(seen), worker, sequence, attempt, *remembered, created, *lease, *claims)
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
            script, name, keys, *self._common(word.seen), "", word.not_after, RECEIPT_SECONDS, *arguments
        )

    def _common(self, seen: Seen | None) -> tuple[int | str, ...]:
        """The arguments of counter.lua."""
        if seen is None:
            return ("", "", "", "", "", "", "", self._on_loss, "")
        known = (seen.epoch, seen.revision, seen.issued, seen.limit, seen.most, int(seen.deleted), seen.moved)
        more = ""
        if seen.each or seen.every or seen.resolved:
            more = f"{seen.resolved} {seen.each} {seen.ends} {seen.every or '-'} {seen.zone or '-'}"
        return (*known, self._on_loss, more)

    async def _script(
        self, script: Script, name: str, keys: list[str], *arguments: int | str, confirm: bool = True
    ) -> list[bytes]:
        """Run a script and split its reply into words."""
        for _ in range(REDIRECTIONS):
            pipeline = self._route.pipeline(name)
            command = ("EVALSHA", script.digest, len(keys), *keys, *arguments)
            reply = await (pipeline.confirmed if confirm else pipeline.call)(*command)
            if isinstance(reply, hiredis.ReplyError):
                reply = await self._again(name, command, reply, pipeline, confirm)
            words: list[bytes] = reply.split()
            if words[0] != b"OVER":
                break
            # Its window is over, and the server knows no time zones.
            now, every, zone = (word.decode() for word in words[1:])
            begins, ends = window(every, zone.strip("-"), int(now))
            more = f"{arguments[WINDOW] or '0 0 0 - -'} {every} {zone} {begins} {ends}"
            arguments = (*arguments[:WINDOW], more, *arguments[WINDOW + 1 :])
        else:
            raise StoreUnavailable("the store's clock does not stay in a window")
        match words[0]:
            case b"MISSING":
                deletion = Seen(int(words[1]), int(words[2]), 0, 0, deleted=True) if words[1:] else None
                raise NoSuchCounter(name, deletion)
            case b"LOST":
                raise StateLost(name)
            case b"STALE":
                raise StoreRejected("a later batch of this worker was executed before this one")
            case b"NEVER":
                raise NoSuchNumber
            case b"LEASED":
                raise NumberLeased("whether these numbers were given is known only once a lease is over")
            case b"LATE":
                raise StoreUnavailable("the store was reached too late")
            case b"NEWER":
                raise StoreRejected(
                    f"the state of counter {name} has version {int(words[1])}, newer than this pythonricing knows "
                    f"({int(words[2])}); upgrade it"
                )
        return words

    async def _again(
        self,
        name: str,
        command: tuple[str | bytes | int, ...],
        error: hiredis.ReplyError,
        pipeline: Pipeline,
        confirm: bool = False,
    ) -> Any:
        """Do what a server's error reply asks for until the reply is none. Raises StoreUnavailable or StoreRejected."""
        asking = False
        for _ in range(REDIRECTIONS):
            if str(error).startswith("NOSCRIPT"):
                # With its source and not after SCRIPT LOAD: a SCRIPT FLUSH may come between two commands.
                command = ("EVAL", SOURCES[command[1]], *command[2:])
            else:
                pipeline, asking = await self._route.redirect(name, str(error), pipeline)
            if asking:
                pipeline.call("ASKING").add_done_callback(ignore)
            reply = await (pipeline.confirmed if confirm else pipeline.call)(*command)
            if not isinstance(reply, hiredis.ReplyError):
                return reply
            error = reply
        raise StoreUnavailable(str(error))


def _counter(name: str, words: list[bytes]) -> Counter:
    """A counter from the words of a script about it, and perhaps what it was before a loss."""
    raised = _raised(words)
    *plain, sale = words
    epoch, revision, limit, most, count, issued, moved, leased = map(int, plain)
    counter = Counter(name, count, limit, epoch, False, revision, most, raised, issued, moved, leased)
    if sale == b"-":
        return counter
    *numbers, every, zone, _ = sale.decode().split(":")
    each, ends, resolved, held, given_back, due, now, expired = map(int, numbers)
    return msgspec.structs.replace(
        counter,
        each=each,
        every=every,
        zone=zone,
        ends=ends,
        resolved=resolved,
        held=held,
        given_back=given_back,
        due=due,
        now=now,
        expired=expired,
    )


def _replay(record: bytes) -> Replay | None:
    if record == b"-":
        return None
    _, size, count, limit, admitted, *more = record.split(b":", 8)
    runs, hold, expires, claimant = (*more, *(b"", b"", b"0", b"")[len(more) :])
    return Replay(
        int(size),
        int(count),
        int(limit),
        admitted == b"1",
        tuple(_runs(runs)) if runs else (),
        hold.decode(),
        int(expires),
        admitted == b"2",
        claimant.decode(),
    )


def _runs(text: bytes) -> list[Run]:
    """Runs from "first-last,first-last", or none from "-"."""
    if text == b"-":
        return []
    return [(int(first), int(last)) for first, _, last in (run.partition(b"-") for run in text.split(b","))]


def _text(runs: Sequence[Run]) -> str:
    return ",".join([f"{first}-{last}" for first, last in runs])


def _raised(records: list[bytes]) -> int | None:
    """The highest number before the script raised it; taken out of the records."""
    return int(records.pop()[1:]) if records[-1].startswith(b"^") else None
