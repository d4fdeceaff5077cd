"""Sorted sets."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from tests.simulation.redis.keyspace import Scores
from tests.simulation.redis.replies import Reply, ReplyError
from tests.simulation.redis.table import command, floating, integer, number_text, syntax_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.redis.keyspace import Keyspace
    from tests.simulation.redis.table import Arguments


@command("ZADD", -4, deny_oom=True)
def zadd(keys: Keyspace, words: Arguments) -> Reply:
    options: set[bytes] = set()
    rest = list(words[2:])
    while rest and rest[0].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"):
        options.add(rest.pop(0).upper())
    if len(rest) % 2 or not rest:
        raise syntax_error()
    if {b"NX", b"XX"} <= options:
        raise ReplyError(b"ERR XX and NX options at the same time are not compatible")
    if len(options & {b"NX", b"GT", b"LT"}) > 1:
        raise ReplyError(b"ERR GT, LT, and/or NX options at the same time are not compatible")
    if b"INCR" in options and len(rest) > 2:
        raise ReplyError(b"ERR INCR option supports a single increment-element pair")
    pairs = [(floating(score), member) for score, member in zip(rest[::2], rest[1::2], strict=True)]
    scores = Scores(keys.read(words[1], Scores))
    added = changed = 0
    written: float | None = None
    for score, member in pairs:
        before = scores.get(member)
        if b"XX" in options if before is None else b"NX" in options:
            continue
        if before is not None and b"INCR" in options:
            score += before
            if score != score:
                raise ReplyError(b"ERR resulting score is not a number (NaN)")
        if before is not None and ((b"GT" in options and score <= before) or (b"LT" in options and score >= before)):
            continue
        added += before is None
        changed += before is not None and before != score
        written = scores[member] = score
    if added or changed:
        keys.update(words[1], scores)
    if b"INCR" in options:
        return None if written is None else number_text(written)
    return added + changed if b"CH" in options else added


@command("ZINCRBY", 4, deny_oom=True)
def zincrby(keys: Keyspace, words: Arguments) -> Reply:
    return zadd(keys, [b"ZADD", words[1], b"INCR", *words[2:]])


@command("ZREM", -3, write=True)
def zrem(keys: Keyspace, words: Arguments) -> Reply:
    return _drop(keys, words[1], list(words[2:]))


@command("ZCARD", 2)
def zcard(keys: Keyspace, words: Arguments) -> Reply:
    return len(keys.read(words[1], Scores))


@command("ZSCORE", 3)
def zscore(keys: Keyspace, words: Arguments) -> Reply:
    score = keys.read(words[1], Scores).get(words[2])
    return None if score is None else number_text(score)


@command("ZCOUNT", 4)
def zcount(keys: Keyspace, words: Arguments) -> Reply:
    inside = _score_range(words[2], words[3])
    return sum(map(inside, keys.read(words[1], Scores).ordered()))


@command("ZRANGE", -4)
def zrange(keys: Keyspace, words: Arguments) -> Reply:
    return _range(keys, words, b"")


@command("ZRANGEBYSCORE", -4)
def zrangebyscore(keys: Keyspace, words: Arguments) -> Reply:
    return _range(keys, words, b"BYSCORE")


@command("ZRANGEBYLEX", -4)
def zrangebylex(keys: Keyspace, words: Arguments) -> Reply:
    return _range(keys, words, b"BYLEX")


@command("ZREMRANGEBYSCORE", 4, write=True)
def zremrangebyscore(keys: Keyspace, words: Arguments) -> Reply:
    inside = _score_range(words[2], words[3])
    return _drop(keys, words[1], [item[1] for item in keys.read(words[1], Scores).ordered() if inside(item)])


def _range(keys: Keyspace, words: Arguments, by: bytes) -> Reply:
    reverse = with_scores = False
    limit: tuple[int, int] | None = None
    rest = iter(words[4:])
    is_plain = not by  # ZRANGE itself, which takes the options that the others are
    for word in rest:
        option = word.upper()
        if option == b"WITHSCORES":
            with_scores = True
        elif option == b"LIMIT":
            amounts = list(islice(rest, 2))
            if len(amounts) < 2:
                raise syntax_error()
            limit = integer(amounts[0]), integer(amounts[1])
        elif option == b"REV" and is_plain:
            reverse = True
        elif option in (b"BYSCORE", b"BYLEX") and is_plain and not by:
            by = option
        else:
            raise syntax_error()
    if limit and limit[1] != -1 and not by:
        raise ReplyError(b"ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX")
    if with_scores and by == b"BYLEX":
        raise ReplyError(b"ERR syntax error, WITHSCORES not supported in combination with BYLEX")
    low, high = (words[3], words[2]) if reverse and by else (words[2], words[3])
    if by:
        inside = (_score_range if by == b"BYSCORE" else _lex_range)(low, high)
        items = list(filter(inside, keys.read(words[1], Scores).ordered()))
        if reverse:
            items.reverse()
        if limit:
            start, count = limit
            items = [] if start < 0 else items[start : start + count if count >= 0 else None]
    else:
        first, last = integer(low), integer(high)
        items = keys.read(words[1], Scores).ordered()
        if reverse:
            items.reverse()
        first, last = (end + len(items) if end < 0 else end for end in (first, last))
        items = items[max(0, first) : max(0, last + 1)]
    if with_scores:
        return [word for score, member in items for word in (member, number_text(score))]
    return [member for _, member in items]


def _score_range(low: bytes, high: bytes) -> Callable[[tuple[float, bytes]], bool]:
    (first, after), (last, before) = ((_bound(word.removeprefix(b"(")), word.startswith(b"(")) for word in (low, high))
    return lambda item: (
        (item[0] > first if after else item[0] >= first) and (item[0] < last if before else item[0] <= last)
    )


def _bound(word: bytes) -> float:
    text = word.partition(b"\0")[0].lstrip()  # as strtod reads it, to which nothing is 0
    return floating(text, b"ERR min or max is not a float") if text else 0.0


def _lex_range(low: bytes, high: bytes) -> Callable[[tuple[float, bytes]], bool]:
    for word in (low, high):
        if not (word in (b"-", b"+") or word[:1] in (b"[", b"(")):
            raise ReplyError(b"ERR min or max not valid string range item")

    def inside(item: tuple[float, bytes]) -> bool:
        member = item[1]
        if low == b"+" or high == b"-":
            return False
        above = low == b"-" or member > low[1:] or (low[:1] == b"[" and member == low[1:])
        return above and (high == b"+" or member < high[1:] or (high[:1] == b"[" and member == high[1:]))

    return inside


def _drop(keys: Keyspace, key: bytes, members: list[bytes]) -> int:
    scores = keys.read(key, Scores)
    left = Scores(scores)
    for member in members:
        left.pop(member, None)
    if len(left) < len(scores):
        keys.update(key, left)
    return len(scores) - len(left)
