"""The table of commands, and what all of them need to read their arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from tests.simulation.redis.replies import NOT_A_FLOAT, NOT_AN_INTEGER, SYNTAX, ReplyError

if TYPE_CHECKING:
    from tests.simulation.redis.replies import Reply

Arguments: TypeAlias = Sequence[bytes]
#: Gets the Server (or as much of it as it needs) and the words of the command, its name first.
Handler: TypeAlias = Callable[[Any, Arguments], "Reply"]
H = TypeVar("H", bound=Handler)


class Command(NamedTuple):
    handler: Handler
    name: bytes  # as errors spell it
    arity: int  # number of words; negative: at least so many
    write: bool
    deny_oom: bool  # may use more memory
    no_script: bool
    always: bool  # a server that is loading, or a replica on its own, does this too


COMMANDS: dict[bytes, Command] = {}
#: Those whose second word says what to do, as in CONFIG GET; by both words.
SUBCOMMANDS: dict[bytes, dict[bytes, Command]] = {}


def command(
    name: str, arity: int, *, write: bool = False, deny_oom: bool = False, no_script: bool = False, always: bool = False
) -> Callable[[H], H]:
    """Enter a handler into the table. `name` may have two words."""

    def enter(handler: H) -> H:
        first, _, second = name.encode().partition(b" ")
        entry = Command(
            handler, name.lower().replace(" ", "|").encode(), arity, write or deny_oom, deny_oom, no_script, always
        )
        if second:
            SUBCOMMANDS.setdefault(first, {})[second] = entry
        else:
            COMMANDS[first] = entry
        return handler

    return enter


def look_up(words: Arguments) -> Command | None:
    """The command that is meant, in whatever case it is spelled. Raises ReplyError."""
    first = words[0].upper()
    if first not in SUBCOMMANDS:
        return COMMANDS.get(first)
    if len(words) < 2:
        raise ReplyError(wrong_number(first.lower()))
    found = SUBCOMMANDS[first].get(words[1].upper())
    if found is None:
        raise ReplyError(b"ERR unknown subcommand '%b'. Try %b HELP." % (printed(words[1]), first))
    return found


def fits(found: Command, words: Arguments) -> bool:
    return len(words) == found.arity if found.arity > 0 else len(words) >= -found.arity


def wrong_number(name: bytes) -> bytes:
    return b"ERR wrong number of arguments for '%b' command" % name


def printed(word: bytes) -> bytes:
    """A word in an error's text, which ends where a C string would."""
    return word.partition(b"\0")[0][:128]


INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
FLOAT = re.compile(rb"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|inf(inity)?)", re.IGNORECASE)


@lru_cache(4096)
def integer(word: bytes, message: bytes = NOT_AN_INTEGER) -> int:
    """A signed number of 64 bits, spelled the one way Redis knows. Raises ReplyError."""
    if INTEGER.fullmatch(word) and -(2**63) <= (number := int(word)) < 2**63:
        return number
    raise ReplyError(message)


def floating(word: bytes, message: bytes = NOT_A_FLOAT) -> float:
    if FLOAT.fullmatch(word):
        return float(word)
    raise ReplyError(message)


def number_text(number: float) -> bytes:
    """A double as Redis writes it: the shortest digits that read as the same (Grisu2, its fpconv_dtoa)."""
    if number == 0 and math.copysign(1, number) < 0:
        return b"-0"
    if abs(number) <= 2**62 and number == int(number):
        return b"%d" % int(number)
    if math.isinf(number) or math.isnan(number):
        return repr(number).encode()
    sign, numerals, power = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(power, int)
    digits = "".join(map(str, numerals))
    exponent = power + len(digits) - 1
    if power >= 0 and exponent < len(digits) + 7:
        text = digits + "0" * power
    elif power < 0 and (power > -7 or abs(exponent) < 4):
        digits = digits.rjust(1 - power, "0")
        text = f"{digits[:power]}.{digits[power:]}"
    else:
        text = f"{digits[0]}{'.' if len(digits) > 1 else ''}{digits[1:]}e{exponent:+d}"
    return ("-" * sign + text).encode()


def syntax_error() -> ReplyError:
    return ReplyError(SYNTAX)
