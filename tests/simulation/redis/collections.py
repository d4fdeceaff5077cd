"""Hashes and sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.redis.keyspace import Hash, Members
from tests.simulation.redis.replies import ReplyError
from tests.simulation.redis.table import command, integer, wrong_number

if TYPE_CHECKING:
    from tests.simulation.redis.keyspace import Keyspace
    from tests.simulation.redis.replies import Reply
    from tests.simulation.redis.table import Arguments


@command("HSET", -4, deny_oom=True)
def hset(keys: Keyspace, words: Arguments) -> Reply:
    if len(words) % 2:
        raise ReplyError(wrong_number(b"hset"))
    fields = Hash(keys.read(words[1], Hash))
    before = len(fields)
    fields.update(zip(words[2::2], words[3::2], strict=True))
    keys.update(words[1], fields)
    return len(fields) - before


@command("HGET", 3)
def hget(keys: Keyspace, words: Arguments) -> Reply:
    return keys.read(words[1], Hash).get(words[2])


@command("HMGET", -3)
def hmget(keys: Keyspace, words: Arguments) -> Reply:
    fields = keys.read(words[1], Hash)
    return [fields.get(field) for field in words[2:]]


@command("HEXISTS", 3)
def hexists(keys: Keyspace, words: Arguments) -> Reply:
    return int(words[2] in keys.read(words[1], Hash))


@command("HLEN", 2)
def hlen(keys: Keyspace, words: Arguments) -> Reply:
    return len(keys.read(words[1], Hash))


@command("HGETALL", 2)
def hgetall(keys: Keyspace, words: Arguments) -> Reply:
    return [word for pair in keys.read(words[1], Hash).items() for word in pair]


@command("HKEYS", 2)
def hkeys(keys: Keyspace, words: Arguments) -> Reply:
    return list(keys.read(words[1], Hash))


@command("HVALS", 2)
def hvals(keys: Keyspace, words: Arguments) -> Reply:
    return list(keys.read(words[1], Hash).values())


@command("HDEL", -3, write=True)
def hdel(keys: Keyspace, words: Arguments) -> Reply:
    fields = keys.read(words[1], Hash)
    left = Hash(fields)
    for field in words[2:]:
        left.pop(field, None)
    if len(left) < len(fields):
        keys.update(words[1], left)
    return len(fields) - len(left)


@command("HINCRBY", 4, deny_oom=True)
def hincrby(keys: Keyspace, words: Arguments) -> Reply:
    amount = integer(words[3])
    fields = Hash(keys.read(words[1], Hash))
    total = integer(fields.get(words[2], b"0"), b"ERR hash value is not an integer") + amount
    if not -(2**63) <= total < 2**63:
        raise ReplyError(b"ERR increment or decrement would overflow")
    fields[words[2]] = b"%d" % total
    keys.update(words[1], fields)
    return total


@command("SADD", -3, deny_oom=True)
def sadd(keys: Keyspace, words: Arguments) -> Reply:
    members = Members(keys.read(words[1], Members))
    before = len(members)
    members.update(dict.fromkeys(words[2:]))
    if len(members) > before:
        keys.update(words[1], members)
    return len(members) - before


@command("SREM", -3, write=True)
def srem(keys: Keyspace, words: Arguments) -> Reply:
    members = keys.read(words[1], Members)
    left = Members(members)
    for member in words[2:]:
        left.pop(member, None)
    if len(left) < len(members):
        keys.update(words[1], left)
    return len(members) - len(left)


@command("SISMEMBER", 3)
def sismember(keys: Keyspace, words: Arguments) -> Reply:
    return int(words[2] in keys.read(words[1], Members))


@command("SCARD", 2)
def scard(keys: Keyspace, words: Arguments) -> Reply:
    return len(keys.read(words[1], Members))


@command("SMEMBERS", 2)
def smembers(keys: Keyspace, words: Arguments) -> Reply:
    return list(keys.read(words[1], Members))
