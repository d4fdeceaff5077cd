"""Whether an answer keeps the service's promises, as far as a client can see."""

from __future__ import annotations

import json


class Numbers:
    """A set of whole numbers from 1 on, a bit each."""

    PAGE = 1 << 16

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Whether it is new."""
        page = self._pages.setdefault(number // self.PAGE, bytearray(self.PAGE // 8))
        byte, bit = number % self.PAGE // 8, 1 << number % 8
        known = page[byte] & bit
        page[byte] |= bit
        return not known


class Wrong(Exception):
    """An answer that breaks a promise. Its text says which."""


class Checker:
    """Every answer of one counter: no number twice, none over the limit, no refusal while there is room."""

    def __init__(self) -> None:
        self._given = Numbers()

    def check(self, status: int, body: bytes, size: int) -> None:
        """Raises Wrong."""
        if status not in (200, 429):
            raise Wrong(f"{status}: {body[:120].decode(errors='replace')}" if status else "no answer")
        try:
            answer = json.loads(body)
            count, limit = answer["request_count"], answer["limit"]
            if not isinstance(count, int) or not isinstance(limit, int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise Wrong(f"not the JSON of a claim: {body[:60].decode(errors='replace')}") from None
        if status == 429:
            if count + size <= limit:
                raise Wrong("refused while there was room")
        elif count > limit:
            raise Wrong("a number over the limit")
        elif sum(map(self._given.add, range(count - size + 1, count + 1))) < size:
            raise Wrong("a number given twice")
