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
    """Every answer of one counter, whose limit is known from whoever set it: not from the answer that is checked.

    No number twice, none over the limit, no other limit, no refusal while there is room. `given` is how many numbers
    claims were given, `unknown` how many those claims asked for whose answer never came, `refused` how many claims
    were refused.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.given = self.unknown = self.refused = 0
        self._numbers = Numbers()

    @property
    def highest(self) -> int:
        """The highest number that can be given."""
        return self.limit

    def check(self, status: int, body: bytes, size: int) -> None:
        """Raises Wrong."""
        if status == 0:
            self.unknown += size
        if status not in (200, 429):
            raise Wrong(f"{status}: {body[:120].decode(errors='replace')}" if status else "no answer")
        try:
            answer = json.loads(body)
            count, limit = answer["request_count"], answer["limit"]
            if type(count) is not int or type(limit) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise Wrong(f"not the JSON of a claim: {body[:60].decode(errors='replace')}") from None
        if status == 429:
            self.refused += 1
        else:
            self.given += size
        if limit != self.limit:
            raise Wrong(f"a limit of {limit} where {self.limit} was set")
        if status == 429:
            if count + size <= limit:
                raise Wrong("refused while there was room")
        elif count > self.highest:
            raise Wrong("a number over the limit")
        elif count < size:
            raise Wrong("a number below 1")
        elif sum(map(self._numbers.add, range(count - size + 1, count + 1))) < size:
            raise Wrong("a number given twice")

    def balance(self, count: int, *, singles: bool) -> None:
        """Hold what was given against the count of a counter that began at 0, once nothing is on its way any more.

        `singles`: claims were of one, so that a refusal means that the whole limit is given. Raises Wrong.
        """
        if not 0 <= count - self.given <= self.unknown:
            raise Wrong(f"the counter reads {count}, claims were given {self.given}")
        if singles and self.refused and self.given + self.unknown < self.limit:
            raise Wrong(f"refused with {self.given} of {self.limit} given")


class SaleChecker(Checker):
    """Of a counter on which each claim is held first: `given` are the numbers that were confirmed.

    `back` is how many were abandoned, or expired before they were confirmed. Nobody else gets these, so as many numbers
    may pass the limit. `sold_out`: a claim was refused while nothing was held.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.back = 0
        self.sold_out = False

    @property
    def highest(self) -> int:
        return self.limit + self.back + self.unknown

    def check(self, status: int, body: bytes, size: int) -> None:
        given = self.given
        try:
            super().check(status, body, size)
        finally:
            self.given = given  # not yet

    def confirm(self, status: int, body: bytes, size: int) -> None:
        """The answer to a confirmation. Raises Wrong."""
        if status == 0:
            self.unknown += size
        if status == 410:
            self.back += size
            return
        try:
            confirmed = sum(last - first + 1 for first, last in json.loads(body)["numbers"]) if status == 200 else 0
        except (ValueError, KeyError, TypeError):
            confirmed = 0
        if confirmed != size:
            raise Wrong(f"{status} to a confirmation of {size}: {body[:120].decode(errors='replace')}")
        self.given += size

    def balance(self, count: int, *, singles: bool) -> None:
        super().balance(count, singles=False)
        if self.given > self.limit:
            raise Wrong(f"{self.given} of {self.limit} sold")
        if self.sold_out and self.given + self.unknown < self.limit:
            raise Wrong(f"sold out with {self.given} of {self.limit} sold")
