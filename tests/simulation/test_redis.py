"""The simulated Redis, held to a real Valkey: the same commands get the same replies and leave the same data."""

from __future__ import annotations

import random
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from loadtests.rig.waiting import wait_until
from pythonricing.stores.redis.store import CLAIM, DELETE, GIVE_BACK, PUT, RESOLVE
from tests.simulation.redis import MASTERDOWN, NOREPLICAS, Hash, Members, Scores, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.redis import RedisServer
    from pythonricing.stores.redis.store import Script

KEYS = [b"a", b"b", b"c", b"d", b"e"]
#: A sorted set with equal scores: what BYLEX gives of others is not specified.
INDEX = b"index"
WORDS = [b"x", b"y", b"z", b"longer", b"", b"\x00\xff", b"1", b"10"]
NUMBERS = [b"0", b"1", b"-1", b"5", b"42", b"9007199254740993", b"9223372036854775807", b"-9223372036854775808"]
ODD_NUMBERS = [b"", b"01", b"+1", b"1.5", b" 1", b"abc", b"-0", b"9223372036854775808", b"1e3", b"inf", b"nan"]
SCORES = [b"0", b"1", b"-1", b"2.5", b"1e3", b"inf", b"-inf", b"+inf", b"0.1", b"1700000000000000", b".5", b"3."]
ENDS = [b"-", b"+", b"[x", b"(x", b"[y", b"(z", b"[", b"x"]
BOUNDS = [b"-inf", b"+inf", b"0", b"(0", b"1", b"(1", b"2.5", b"(1000"]
#: Moments far ahead, and past ones; nothing between, so that a busy machine makes no difference.
SECONDS = [b"1000", b"100000", b"0", b"-1"]
MOMENTS = [b"4102444800", b"4102444900", b"1", b"-5"]

#: A second of these years, which scripts make of the time; a reply need not tell in which second it was made.
SECOND = re.compile(rb"(?<!\d)1[7-9]\d{8}(?!\d)")

SCRIPTS = [
    b"return {1, 2.9, -2.9, 'x', false, true, {3, {4}}, nil, 5}",
    b"return {redis.call('GET', 'nothing'), 1}",
    b"return redis.call('SET', KEYS[1], ARGV[1])",
    b"return redis.status_reply('FINE')",
    b"return redis.error_reply('MINE alone')",
    b"return {err='OWN error'}",
    b"return {ok='fine'}",
    b"return redis.pcall('HGET', KEYS[1], 'x')",
    b"local got = redis.pcall('HGET', KEYS[1], 'x')\nif type(got) == 'table' then return got.err end return got",
    b"return redis.call('HGETALL', KEYS[1])",
    b"redis.call('SET', KEYS[1], 1)\n\nreturn redis.call('HGETALL', KEYS[1])",
    b"local function inner() return redis.call('INCR', KEYS[1]) end\nlocal n = inner()\nreturn n + 0.5",
    b"return redis.call('SET', KEYS[1], 12345678901234567)",
    b"redis.call('SET', KEYS[1], 0.1) return redis.call('GET', KEYS[1])",
    b"redis.call('SET', KEYS[1], 1e15) return redis.call('GET', KEYS[1])",
    b"redis.call('SET', KEYS[1], -2) return redis.call('GET', KEYS[1])",
    b"return redis.call('SET', KEYS[1])",
    b"return redis.call('NOSUCH', KEYS[1])",
    b"return redis.call('EVAL', 'return 1', 0)",
    b"return redis.call('SET', KEYS[1], {})",
    b"return redis.call('SET', KEYS[1], true)",
    b"return undefined",
    b"undefined = 1",
    b"return 1 + nil",
    b"error('on purpose')",
    b"error({err='TABLE on purpose'})",
    b"return nothing()",
    b"return (",
    b"return #KEYS .. ' ' .. #ARGV",
    b"return tostring(9007199254740993)",
    b"return 9007199254740993",
    b"return {pcall(redis.call, 'HGET', KEYS[1], 'x')}",
    b"return redis.sha1hex('')",
    b"return string.format('%.0f', tonumber(ARGV[1]) or 0)",
    b"return redis.call('TYPE', KEYS[1])",
    b"return redis.call('TYPE', KEYS[1])['ok']",
    b"return redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')",
    b"return redis.call('EXISTS', KEYS[1]) == 1",
    b"return math.max(unpack({3, 1, 2}))",
    b"return redis.call('PING')",
    b"return nil",
    b"",
]


class Real:
    """A connection to a real server that shows its replies as they came."""

    def __init__(self, server: RedisServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        self._file = self._socket.makefile("rb")

    def execute(self, command: list[bytes]) -> bytes:
        self._socket.sendall(hiredis.pack_command(tuple(command)))  # type: ignore[arg-type]
        return self._reply()

    def _reply(self) -> bytes:
        line = self._file.readline()
        if line[:1] == b"$" and line != b"$-1\r\n":
            return line + self._file.read(int(line[1:]) + 2)
        if line[:1] == b"*":
            return line + b"".join(self._reply() for _ in range(int(line[1:])))
        return line

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def decoded(reply: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(reply)
    return reader.gets()


def fields(words: list[bytes]) -> dict[bytes, bytes]:
    """A hash that is told word by word, in an order that nobody promises for one that is large."""
    words = [SECOND.sub(b"second", word) for word in words]
    return dict(zip(words[::2], words[1::2], strict=True))


class Pair:
    """A real server and a simulated one that get the same commands."""

    def __init__(self, real: RedisServer) -> None:
        self.real = Real(real)
        self.clock = 0
        self.simulated = Server(lambda: self.clock)
        self.session = self.simulated.connect()

    def execute(self, *command: bytes) -> bytes:
        """The real server's reply, and an assertion that the other's is the same."""
        words = list(command)
        expected = self.real.execute(words)
        self.clock = self._moment(words[0].upper(), expected)
        reply = self.session.execute(words)
        if words[0].upper() in (b"TTL", b"PTTL"):
            reply, expected = (re.sub(rb":[1-9]\d*", b":some", each) for each in (reply, expected))
        elif words[0].upper() in (b"EVAL", b"EVALSHA"):
            assert SECOND.sub(b"second", reply) == SECOND.sub(b"second", expected), words
            return expected
        elif words[0].upper() == b"HELLO" and expected[:1] == b"*":
            return expected  # its version, and modules that it may have
        elif words[0].upper() == b"SMEMBERS" and expected[:1] == b"*":
            assert sorted(decoded(reply)) == sorted(decoded(expected)), words
            return expected
        elif words[0].upper() == b"HGETALL" and expected[:1] == b"*":
            assert fields(decoded(reply)) == fields(decoded(expected)), words
            return expected
        assert reply == expected, words
        return expected

    def _moment(self, name: bytes, reply: bytes) -> int:
        """The time of this command on the real server, as far as its reply tells it: an epoch is a moment."""
        if name == b"TIME" and reply[:1] == b"*":
            seconds, microseconds = decoded(reply)
            return int(seconds) * 1_000_000 + int(microseconds)
        now = time.time_ns() // 1000
        epochs = [int(digits) for digits in re.findall(rb"(?<!\d)1\d{15}(?!\d)", reply)] if b"EVAL" in name else []
        return next((epoch for epoch in epochs if abs(epoch - now) < 60_000_000 and epoch > self.clock), now)

    def lapse(self, key: bytes) -> None:
        """Let a key expire by the clock."""
        self.execute(b"PEXPIRE", key, b"1")
        wait_until(lambda: self.real.execute([b"EXISTS", key]) == b":0\r\n", "the key to expire")
        self.clock += 10_000
        assert self.session.execute([b"EXISTS", key]) == b":0\r\n"

    def compare_data(self) -> None:
        names = decoded(self.real.execute([b"KEYS", b"*"]))
        contents = self.simulated.contents()
        assert sorted(names) == sorted(contents)
        for name, (value, expiry) in contents.items():
            read: object
            match value:
                case bytes():
                    stored, read = [b"GET", name], value
                case Hash():
                    stored, read = [b"HGETALL", name], [word for pair in value.items() for word in pair]
                case Members():
                    stored, read = [b"SMEMBERS", name], sorted(value)
                case Scores():
                    stored, read = [b"ZRANGE", name, b"0", b"-1"], [member for _, member in value.ordered()]
            found = decoded(self.real.execute(stored))
            if isinstance(value, Hash):
                found, read = fields(found), fields([word for pair in value.items() for word in pair])
            assert (sorted(found) if isinstance(value, Members) else found) == read, name
            assert (decoded(self.real.execute([b"PTTL", name])) > 0) == (expiry > 0), name


@pytest.fixture
def pair(empty_valkey: RedisServer) -> Iterator[Pair]:
    empty_valkey.run("SCRIPT", "FLUSH")
    made = Pair(empty_valkey)
    yield made
    made.real.close()


class Generator:
    """Commands on few keys, most of them right."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def key(self) -> bytes:
        return self.pick(KEYS)

    def pick(self, items: list[bytes]) -> bytes:
        return self.random.choice(items)

    def number(self) -> bytes:
        return self.pick(NUMBERS if self.random.random() < 0.85 else ODD_NUMBERS)

    def some(self, item: Callable[[], bytes], most: int = 3) -> list[bytes]:
        return [item() for _ in range(self.random.randint(1, most))]

    def options(self, options: list[list[bytes]]) -> list[bytes]:
        chosen = self.random.sample(options, min(len(options), self.random.choice([0, 0, 0, 1, 1, 2, 3])))
        return [word for option in chosen for word in option]

    def word(self) -> bytes:
        return self.pick(WORDS)

    def command(self) -> list[bytes]:
        words = self.random.choice(
            [self.string, self.expiry, self.hash, self.set, self.sorted_set, self.sorted_set, self.script, self.other]
        )()
        if self.random.random() < 0.03:
            words = words[: self.random.randint(1, len(words))]
        if self.random.random() < 0.03:
            words.append(self.word())
        if self.random.random() < 0.1:
            words[0] = words[0].lower()
        return words

    def string(self) -> list[bytes]:
        key = self.key()
        limits = [
            [b"NX"],
            [b"XX"],
            [b"GET"],
            [b"KEEPTTL"],
            [self.pick([b"EX", b"px"]), self.pick(SECONDS)],
            [b"EXAT", self.pick(MOMENTS)],
            [b"PXAT", self.pick(MOMENTS) + b"000"],
            [b"EX", self.pick(ODD_NUMBERS)],
        ]
        return self.random.choice(
            [
                [b"GET", key],
                [b"SET", key, self.word(), *self.options(limits)],
                [b"SET", key, self.number()],
                [b"INCR", key],
                [b"INCRBY", key, self.number()],
            ]
        )

    def expiry(self) -> list[bytes]:
        key = self.key()
        moment = [[self.pick([b"NX", b"XX", b"gt", b"LT", b"YY"])], [self.pick([b"XX", b"GT", b"LT"])]]
        return self.random.choice(
            [
                [b"EXPIRE", key, self.pick(SECONDS)],
                [b"PEXPIRE", key, self.pick(SECONDS) + b"000"],
                [b"EXPIRE", key, self.number()],
                [b"EXPIREAT", key, self.pick(MOMENTS), *self.options(moment)],
                [b"PEXPIREAT", key, self.pick(MOMENTS) + b"000", *self.options(moment)],
                [b"PERSIST", key],
                [b"TTL", key],
                [b"PTTL", key],
            ]
        )

    def hash(self) -> list[bytes]:
        key = self.key()
        return self.random.choice(
            [
                [b"HSET", key, *self.some(self.word, 4)],
                [b"HSET", key, self.word(), self.number()],
                [b"HGET", key, self.word()],
                [b"HMGET", key, *self.some(self.word)],
                [b"HDEL", key, *self.some(self.word)],
                [b"HEXISTS", key, self.word()],
                [b"HGETALL", key],
                [b"HKEYS", key],
                [b"HVALS", key],
                [b"HLEN", key],
                [b"HINCRBY", key, self.word(), self.number()],
            ]
        )

    def set(self) -> list[bytes]:
        key = self.key()
        return self.random.choice(
            [
                [b"SADD", key, *self.some(self.word)],
                [b"SREM", key, *self.some(self.word)],
                [b"SISMEMBER", key, self.word()],
                [b"SMEMBERS", key],
                [b"SCARD", key],
            ]
        )

    def sorted_set(self) -> list[bytes]:
        key = self.key()
        flags = [[b"NX"], [b"XX"], [b"GT"], [b"LT"], [b"CH"], [b"INCR"]]
        limit = [b"LIMIT", self.pick([b"0", b"1", b"-1", b"x"]), self.pick([b"0", b"1", b"2", b"-1"])]
        more = [limit, limit, [b"WITHSCORES"], [b"REV"]]
        score = self.pick(SCORES if self.random.random() < 0.9 else ODD_NUMBERS)
        return self.random.choice(
            [
                [b"ZADD", key, *self.options(flags), score, self.word()],
                [b"ZADD", key, *self.options(flags), score, self.word(), self.pick(SCORES), self.word()],
                [b"ZADD", INDEX, b"0", self.word(), b"0", self.word(), b"0", self.word()],
                [b"ZREM", INDEX, self.word()],
                [b"ZINCRBY", key, score, self.word()],
                [b"ZREM", key, *self.some(self.word)],
                [b"ZCARD", key],
                [b"ZSCORE", key, self.word()],
                [b"ZCOUNT", key, self.pick(BOUNDS), self.pick(BOUNDS)],
                [b"ZRANGE", key, self.number(), self.number(), *self.options(more)],
                [b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"],
                [b"ZRANGE", INDEX, self.pick(ENDS), self.pick(ENDS), b"BYLEX", *self.options(more)],
                [b"ZRANGE", key, self.pick(BOUNDS), self.pick(BOUNDS), b"BYSCORE", *self.options(more)],
                [b"ZRANGEBYSCORE", key, self.pick(BOUNDS), self.pick(BOUNDS), *self.options(more)],
                [b"ZRANGEBYLEX", INDEX, self.pick(ENDS), self.pick(ENDS), *self.options(more)],
                [b"ZREMRANGEBYSCORE", key, self.pick(BOUNDS), self.pick(BOUNDS)],
            ]
        )

    def script(self) -> list[bytes]:
        count = self.pick([b"1", b"1", b"1", b"0", b"2", b"9", b"-1", b"x"])
        return [b"EVAL", self.pick(SCRIPTS), count, self.key(), self.word(), self.number()]

    def other(self) -> list[bytes]:
        key = self.key()
        return self.random.choice(
            [
                [self.pick([b"DEL", b"UNLINK"]), *self.some(self.key, 2)],
                [b"EXISTS", *self.some(self.key)],
                [b"TYPE", key],
                [b"DBSIZE"],
                [b"DEL", INDEX],
                [b"SET", INDEX, b"no sorted set"],
                [b"PING"],
                [b"PING", self.word()],
                [b"ECHO", self.word()],
                [b"TIME"],
                [b"NOSUCH", self.word(), key],
                [b"CONFIG", self.pick([b"NOSUCH", b"GET"]), b"nothing"],
                [b"CONFIG"],
                [b"CLIENT", b"SETNAME", b"me"],
                [b"ASKING"],
                [b"CLUSTER", b"INFO"],
                [b"SCRIPT", b"EXISTS", b"0" * 40],
                [b"SCRIPT", b"LOAD", self.pick(SCRIPTS)],
                [b"SCRIPT", b"FLUSH"],
                [self.pick([b"FLUSHDB", b"FLUSHALL"]), *self.options([[b"ASYNC"]])],
                [b"EVALSHA", b"0" * 40, b"0"],
                [b"EVALSHA", b"short", b"0"],
                [b"WAIT", b"0", b"10"],
                [b"WAIT", self.pick([b"0", b"x"]), self.pick([b"-1", b"x", b"0"])],
                [b"SELECT", self.pick([b"0", b"16", b"x"])],
                [b"HELLO", b"4"],
                [b"HELLO", b"x"],
            ]
        )


@pytest.mark.parametrize("seed", range(24))
def test_the_same_commands_get_the_same_replies(pair: Pair, seed: int) -> None:
    generator = Generator(seed)
    for _ in range(600):
        pair.execute(*generator.command())
        if generator.random.random() < 0.005:
            pair.lapse(generator.key())
    pair.compare_data()


class Service:
    """What the service sends: its scripts, with arguments as they may come, and what it reads.

    Nothing is lent, and holds and windows last for long, because how long ago that was is no part of a reply.
    """

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.random = random.Random(seed)
        self.sequence = dict.fromkeys((b"w1", b"w2"), 0)
        #: Epoch, revision, issued, limit, largest claim, deleted, moved; and what of them has to do with sales.
        self.seen: list[tuple[list[int], str]] = []
        self.holds: list[bytes] = [b"none"]
        self.words = self.errors = 0

    def run(self, script: Script, keys: list[bytes], *arguments: object) -> bytes:
        words = [b"%d" % len(keys), *keys, *(str(argument).encode() for argument in arguments)]
        name = b"pythonricing:counters"
        self.pair.execute(b"ZADD", name, b"0", keys[0])
        reply = self.pair.execute(b"EVALSHA", script.digest.encode(), *words)
        if reply.startswith(b"-NOSCRIPT"):
            reply = self.pair.execute(b"EVAL", script.source, *words)
        self.errors += reply.startswith(b"-ERR")
        return reply

    def step(self) -> None:
        name = self.random.choice([b"pythonricing:{default}", b"pythonricing:{other}"])
        choose = self.random.choices(
            [
                self.claim,
                self.read,
                self.put,
                self.delete,
                self.browse,
                self.loss,
                self.flush_scripts,
                self.resolve,
                self.give_back,
            ],
            [60, 10, 8, 4, 4, 6, 1, 20, 10],
        )[0]
        choose(name)

    def common(self) -> list[object]:
        """What a worker has seen: now and then of another counter, or more than there is; and what a loss does."""
        known: list[object] = [""] * 7
        more = ""
        if self.seen and self.random.random() < 0.8:
            (epoch, revision, issued, *rest), more = self.random.choice(self.seen[-3:])
            epoch += self.random.choice([0, 0, 0, 0, 0, 0, 7, -7])
            revision += self.random.choice([0] * 9 + [1])
            known = [epoch, revision, issued + self.random.choice([0, 0, 0, 0, 3]), *rest]
        return [*known, self.random.choice(["halt", "halt", "raise"]), more]

    def see(self, words: list[bytes], sale: bytes) -> None:
        """What a reply tells of a counter."""
        epoch, revision, limit, most, _, issued, moved = map(int, words[:7])
        more = ""
        if sale != b"-":
            each, ends, resolved, *_, every, zone, _ = sale.decode().split(":")
            more = f"{resolved} {each} {ends} {every or '-'} {zone or '-'}"
        self.seen.append(([epoch, revision, issued, limit, most, 0, moved], more))

    def claim(self, name: bytes) -> None:
        worker = self.random.choice(list(self.sequence))
        self.sequence[worker] += self.random.choice([1, 1, 1, 1, 0, -1])
        keys, claims = [], list[int | str]()
        keyed, sale = self.random.random() < 0.5, self.random.random() < 0.5
        for _ in range(self.random.randint(1, 8)):
            size = self.random.choice([1, 1, 1, 2, 5])
            if keyed and self.random.random() < 0.5:
                keys.append(name + b":key:" + self.random.choice([b"k1", b"k2", b"k3", b"k4"]))
                size = -size
            if sale and self.random.random() < 0.7:
                claims += [0, size, *self.wish()]
            else:
                claims += [1 if size < 0 else self.random.randint(1, 4), size]
        self.run_claim(worker, [name, name + b":receipt:" + worker, *keys], self.sequence[worker], claims, sale)

    def wish(self) -> list[int | str]:
        """A hold, a claimant, or both."""
        hold, claimant = self.random.choice([(1, 0), (1, 1), (0, 1)])
        if hold:
            self.holds.append(b"h%d" % len(self.holds))
        id = self.holds[-1].decode() if hold else ""
        return [id, self.random.choice([1000, 2000, 9000]) * hold, self.random.choice(["a", "b"]) * claimant]

    def read(self, name: bytes) -> None:
        self.run_claim(b"", [name, name + b":receipt:none"], 0, [])

    def run_claim(
        self, worker: bytes, keys: list[bytes], sequence: int, claims: list[int | str], sale: bool = False
    ) -> None:
        create = self.random.choice(["", "", 10, 100, 2**53 - 1])
        attempt = self.random.randint(0, 3)
        lease = (0, "", "", "1" if sale else "")
        reply = self.run(
            CLAIM, keys, *self.common(), worker.decode(), sequence, attempt, 60, 86400, 60, create, *lease, *claims
        )
        words = decoded(reply).split() if reply[:1] == b"$" else []
        if len(words) > 3:
            self.see(words[1:], words[11])

    def word(self, script: Script, name: bytes, *arguments: object) -> list[bytes]:
        """An operator's: now and then again, or too late."""
        self.words += self.random.choice([1, 1, 1, 0])
        receipt = name + b":receipt:o%d" % self.words
        not_after = self.random.choice([2**53 - 1, 2**53 - 1, 2**53 - 1, 1])
        reply = self.run(script, [name, receipt], *self.common(), "", not_after, 60, *arguments)
        return decoded(reply).split() if reply[:1] == b"$" else []

    def put(self, name: bytes) -> None:
        limit = self.random.choice(["", 0, 10, 50, 2**53 - 1])
        most, each = self.random.choice(["", "", 0, 3]), self.random.choice(["", 0, 4])
        every, zone = self.random.choice([("", ""), ("-", "-"), ("366d", "-")])
        how = self.random.choice(["change", "restart", "configure"])
        words = self.word(PUT, name, limit, most, each, every, zone, how)
        if len(words) > 3:
            self.see(words[1:], words[9])

    def resolve(self, name: bytes) -> None:
        not_after = self.random.choice([2**53 - 1, 2**53 - 1, 2**53 - 1, 1])
        id, action = self.random.choice(self.holds[-20:]).decode(), self.random.choice(["confirm", "release"])
        arguments = [not_after, id, action, self.random.choice(["", "", 1, 9])]
        reply = self.run(RESOLVE, [name], *self.common(), "", *arguments)
        words = decoded(reply).split() if reply[:1] == b"$" else []
        if len(words) > 3:
            self.see(words[3:], words[11])

    def give_back(self, name: bytes) -> None:
        first = self.random.randint(1, 60)
        runs = [f"{low}-{low + self.random.randint(0, 3)}" for low in (first, first + 9)[: self.random.randint(1, 2)]]
        words = self.word(GIVE_BACK, name, ",".join(runs))
        if len(words) > 3:
            self.see(words[1:], words[9])

    def delete(self, name: bytes) -> None:
        words = self.word(DELETE, name)
        if words and words[0].isdigit():
            self.seen.append(([int(words[0]), int(words[1]), 0, 0, 0, 1, 0], ""))

    def browse(self, name: bytes) -> None:
        self.pair.execute(b"ZRANGE", b"pythonricing:counters", b"-", b"+", b"BYLEX", b"LIMIT", b"0", b"1000")
        self.pair.execute(b"HGETALL", name)
        self.pair.execute(b"ZREM", b"pythonricing:counters", name)

    def loss(self, name: bytes) -> None:
        """Somebody lost something, or put something else in its place."""
        key = self.random.choice([name, name, name + b":receipt:w1", name + b":key:k1"])
        count = b"%d" % self.random.choice([0, 4, 9007199254740993])
        harm = [(b"DEL", key), (b"EXPIRE", key, b"-1"), (b"HSET", name, b"count", count), (b"HDEL", name, b"count")]
        self.pair.execute(*self.random.choice(harm))
        if self.random.random() < 0.1:
            self.pair.execute(b"SET", name, b"not a counter")
            self.run_wrong(name)
            self.pair.execute(b"DEL", name)

    def run_wrong(self, name: bytes) -> None:
        for script, arguments in (
            (CLAIM, ["w1", 0, 0, 60, 60, 60, "", 0, "", "", ""]),
            (PUT, ["", 2**53, 60, 1, "", "", "", "", "change"]),
            (DELETE, ["", 2**53, 60]),
            (RESOLVE, ["", 2**53, "none", "confirm", ""]),
            (GIVE_BACK, ["", 2**53, 60, "1-1"]),
        ):
            reply = self.run(script, [name, name + b":receipt:none"], *self.common(), *arguments)
            assert reply.startswith(b"-WRONGTYPE")

    def flush_scripts(self, name: bytes) -> None:
        self.pair.execute(b"SCRIPT", b"FLUSH")


@pytest.mark.parametrize("seed", range(16))
def test_the_scripts_of_the_service_do_the_same(pair: Pair, seed: int) -> None:
    service = Service(pair, seed)
    for _ in range(500):
        service.step()
    assert service.errors < 100, "most of what is sent is what the service sends"
    pair.compare_data()


def fill(pair: Pair, generator: Generator, commands: int) -> None:
    for _ in range(commands):
        words = generator.command()
        if words[0].upper() not in (b"DBSIZE", b"HELLO"):  # the latter tells who is a replica
            pair.execute(*words)


@pytest.fixture
def own_pair(redis_server: Callable[..., RedisServer]) -> Iterator[tuple[RedisServer, Pair]]:
    """A pair whose real server may be harmed, with data."""
    server = redis_server(None, "--appendfsync", "no")
    pair = Pair(server)
    fill(pair, Generator(0), 500)
    yield server, pair
    pair.real.close()


def test_out_of_memory(own_pair: tuple[RedisServer, Pair]) -> None:
    server, pair = own_pair
    server.run("CONFIG", "SET", "maxmemory", 1)
    pair.simulated.full = True
    fill(pair, Generator(1), 1000)
    # Only what comes before a script's first write is refused.
    pair.execute(b"EVAL", b"redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], 1)", b"1", b"a")
    pair.execute(b"EVAL", b"redis.call('GET', KEYS[1]) return redis.call('SET', KEYS[1], 1)", b"1", b"a")
    for script in (CLAIM, PUT, DELETE, RESOLVE, GIVE_BACK):
        arguments = [b"1", b"0", b"60", b"60", b"10", b"", b"", b"", b"halt", b"1", b"1"]
        pair.execute(b"EVAL", script.source, b"2", b"counter", b"receipt", *arguments)
    pair.compare_data()


def test_a_replica_refuses_writes(own_pair: tuple[RedisServer, Pair]) -> None:
    server, pair = own_pair
    server.run("REPLICAOF", "127.0.0.1", 1)
    primary = Server(lambda: pair.clock)
    primary.restore(pair.simulated.copy())
    pair.simulated.follow(primary)
    fill(pair, Generator(2), 1000)
    pair.compare_data()


def test_a_replica_without_its_primary_may_refuse_everything(own_pair: tuple[RedisServer, Pair]) -> None:
    server, pair = own_pair
    server.run("REPLICAOF", "127.0.0.1", 1)
    server.run("CONFIG", "SET", "replica-serve-stale-data", "no")
    pair.simulated.follow(Server(lambda: pair.clock))
    pair.simulated.refusal = MASTERDOWN
    reading = [b"EVAL", b"return redis.call('GET', 'a')", b"0"]
    for words in ([b"GET", b"a"], [b"SET", b"a", b"1"], [b"DEL"], [b"NOSUCH"], [b"TTL", b"a"], [b"PING"], reading):
        pair.execute(*words)


def test_a_primary_without_enough_replicas_refuses_writes(own_pair: tuple[RedisServer, Pair]) -> None:
    server, pair = own_pair
    server.run("CONFIG", "SET", "min-replicas-to-write", 1)
    pair.simulated.write_refusal = NOREPLICAS
    fill(pair, Generator(3), 1000)
    pair.compare_data()
