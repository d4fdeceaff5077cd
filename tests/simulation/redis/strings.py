"""Strings, and keys of any kind: existence and expiry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.redis.keyspace import TYPE_NAMES
from tests.simulation.redis.replies import OK, WRONG_TYPE, ReplyError, Status
from tests.simulation.redis.table import command, integer, printed, syntax_error

if TYPE_CHECKING:
    from tests.simulation.redis.keyspace import Keyspace
    from tests.simulation.redis.replies import Reply
    from tests.simulation.redis.table import Arguments

#: Options that name an expiry: milliseconds in one unit, and whether it is a moment instead of a duration.
EXPIRIES = {b"EX": (1000, False), b"PX": (1, False), b"EXAT": (1000, True), b"PXAT": (1, True)}


@command("GET", 2)
def get(keys: Keyspace, words: Arguments) -> Reply:
    return keys.find(words[1], bytes)


@command("SET", -3, deny_oom=True)
def set_(keys: Keyspace, words: Arguments) -> Reply:
    key, value = words[1], words[2]
    if len(words) == 3 or (len(words) == 5 and words[3] == b"EX"):  # nearly all
        expiry = _expiry(keys, b"EX", words[4], b"set") if len(words) == 5 else 0
        keys.put(key, (value, expiry))
        return OK
    seen: set[bytes] = set()
    rest = iter(words[3:])
    at: tuple[bytes, bytes] | None = None
    for word in rest:
        option = word.upper()
        if option in EXPIRIES:
            if (at and at[0] != option) or b"KEEPTTL" in seen or (amount := next(rest, None)) is None:
                raise syntax_error()
            at = option, amount
        elif option not in (b"NX", b"XX", b"GET", b"KEEPTTL") or (option == b"KEEPTTL" and at):
            raise syntax_error()
        else:
            seen.add(option)
    if {b"NX", b"XX"} <= seen:
        raise syntax_error()
    expiry = _expiry(keys, *at, b"set") if at else 0
    before = keys.entry(key)
    if b"GET" in seen and before and type(before[0]) is not bytes:
        raise ReplyError(WRONG_TYPE)
    refused = (b"NX" in seen and before) or (b"XX" in seen and not before)
    if not refused:
        if b"KEEPTTL" in seen and before:
            expiry = before[1]
        keys.put(key, None if 0 < expiry <= keys.milliseconds else (value, expiry))
    if b"GET" in seen:
        return before[0] if before else None  # type: ignore[return-value]
    return None if refused else OK


def _expiry(keys: Keyspace, option: bytes, word: bytes, name: bytes) -> int:
    unit, is_moment = EXPIRIES[option]
    amount = integer(word) * unit
    moment = amount if is_moment else keys.milliseconds + amount
    if amount <= 0 or moment >= 2**63:
        raise ReplyError(b"ERR invalid expire time in '%b' command" % name)
    return moment


@command("INCR", 2, deny_oom=True)
def incr(keys: Keyspace, words: Arguments) -> Reply:
    return _add(keys, words[1], 1)


@command("INCRBY", 3, deny_oom=True)
def incrby(keys: Keyspace, words: Arguments) -> Reply:
    return _add(keys, words[1], integer(words[2]))


def _add(keys: Keyspace, key: bytes, amount: int) -> int:
    total = integer(b"0" if (stored := keys.find(key, bytes)) is None else stored) + amount
    if not -(2**63) <= total < 2**63:
        raise ReplyError(b"ERR increment or decrement would overflow")
    keys.update(key, b"%d" % total)
    return total


@command("DEL", -2, write=True)
@command("UNLINK", -2, write=True)
def delete(keys: Keyspace, words: Arguments) -> Reply:
    deleted = 0
    for key in words[1:]:
        if keys.entry(key):
            keys.put(key, None)
            deleted += 1
    return deleted


@command("EXISTS", -2)
def exists(keys: Keyspace, words: Arguments) -> Reply:
    return sum(keys.entry(key) is not None for key in words[1:])


@command("TYPE", 2)
def type_(keys: Keyspace, words: Arguments) -> Reply:
    entry = keys.entry(words[1])
    return Status(TYPE_NAMES[type(entry[0])] if entry else b"none")


@command("DBSIZE", 1)
def dbsize(keys: Keyspace, words: Arguments) -> Reply:
    return len(keys.entries)


@command("EXPIRE", -3, write=True)
def expire(keys: Keyspace, words: Arguments) -> Reply:
    return _expire(keys, words, 1000, keys.milliseconds, b"expire")


@command("PEXPIRE", -3, write=True)
def pexpire(keys: Keyspace, words: Arguments) -> Reply:
    return _expire(keys, words, 1, keys.milliseconds, b"pexpire")


@command("EXPIREAT", -3, write=True)
def expireat(keys: Keyspace, words: Arguments) -> Reply:
    return _expire(keys, words, 1000, 0, b"expireat")


@command("PEXPIREAT", -3, write=True)
def pexpireat(keys: Keyspace, words: Arguments) -> Reply:
    return _expire(keys, words, 1, 0, b"pexpireat")


def _expire(keys: Keyspace, words: Arguments, unit: int, base: int, name: bytes) -> int:
    options = {word.upper() for word in words[3:]}
    if unknown := [word for word in words[3:] if word.upper() not in (b"NX", b"XX", b"GT", b"LT")]:
        raise ReplyError(b"ERR Unsupported option %b" % printed(unknown[0]))
    if b"NX" in options and len(options) > 1:
        raise ReplyError(b"ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= options:
        raise ReplyError(b"ERR GT and LT options at the same time are not compatible")
    moment = base + integer(words[2]) * unit
    if not -(2**63) <= moment < 2**63:
        raise ReplyError(b"ERR invalid expire time in '%b' command" % name)
    entry = keys.entry(words[1])
    if entry is None:
        return 0
    value, before = entry
    if (
        (b"NX" in options and before)
        or (b"XX" in options and not before)
        or (b"GT" in options and (not before or moment <= before))
        or (b"LT" in options and before and moment >= before)
    ):
        return 0
    keys.put(words[1], None if moment <= keys.milliseconds else (value, moment))
    return 1


@command("PERSIST", 2, write=True)
def persist(keys: Keyspace, words: Arguments) -> Reply:
    entry = keys.entry(words[1])
    if not entry or not entry[1]:
        return 0
    keys.put(words[1], (entry[0], 0))
    return 1


@command("TTL", 2)
def ttl(keys: Keyspace, words: Arguments) -> Reply:
    left = pttl(keys, words)
    return left if left < 0 else (left + 500) // 1000


@command("PTTL", 2)
def pttl(keys: Keyspace, words: Arguments) -> int:
    entry = keys.entry(words[1])
    if entry is None:
        return -2
    return max(0, entry[1] - keys.milliseconds) if entry[1] else -1
