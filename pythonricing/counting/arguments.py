"""Whether what callers say can be: before anything of it reaches a store, where it would break what travels with it."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pythonricing.counting.model import CLAIMANT, MAX_HOLD_SECONDS
from pythonricing.settings import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pythonricing.counting.model import Run


def whole(what: str, value: Any, least: int, most: int) -> int:
    """A whole number, as a plain int. Raises TypeError for what is none, a bool too; ValueError outside the bounds."""
    if isinstance(value, bool):
        raise TypeError(f"{what} must be a whole number, not a bool")
    try:
        number = int(operator.index(value))
    except TypeError:
        raise TypeError(f"{what} must be a whole number, not {type(value).__name__}") from None
    if not least <= number <= most:
        raise ValueError(f"{what} must be a whole number from {least} to {most}")
    return number


def text(what: str, value: Any) -> str:
    """A string. Raises TypeError for what is none."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, not {type(value).__name__}")
    return value


def wish(hold: Any, claimant: Any) -> tuple[int, str]:
    """The seconds of a hold, 0: none, and a claimant, "": none."""
    if text("claimant", claimant) and not CLAIMANT.fullmatch(claimant):
        raise ValueError("a claimant must be 1 to 128 visible ASCII characters")
    return whole("hold", hold, 0, MAX_HOLD_SECONDS), claimant


def runs(value: Iterable[Any]) -> list[Run]:
    """Runs that lie apart, in order. Raises ValueError for one that is backwards, and for a number that is in two."""
    found: list[Run] = []
    for run in value:
        try:
            first, last = run
        except (TypeError, ValueError):
            raise TypeError("a run is its first and its last number") from None
        found.append((whole("a number", first, 1, MAX_COUNT), whole("a number", last, 1, MAX_COUNT)))
    found.sort()
    if any(first > last for first, last in found):
        raise ValueError("a run is its first and its last number, and not backwards")
    if any(before[1] >= after[0] for before, after in pairwise(found)):
        raise ValueError("runs lie apart: a number goes back once")
    return found
