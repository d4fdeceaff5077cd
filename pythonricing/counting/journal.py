"""Who is told of what happened to claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pythonricing.counting.model import Resolution, Run, Seen


#: What a command is sent for: it has claims, or none but asks for a lease, or only gives one back.
Kind = Literal["claims", "lease", "return"]


class Journal:
    """Who is told of what happened to claims, a batch at a time. This one keeps nothing of it."""

    def answered(self, name: str, claims: int, seconds: float, kind: Kind) -> None:
        """The store answered a batch of this many claims, this long after it was sent (for the last time)."""

    def leased(self, name: str, numbers: int) -> None:
        """How many numbers this worker holds on lease now."""

    def scattered(self, name: str, numbers: Sequence[tuple[Run, ...]]) -> None:
        """The runs of claims that own several: `settled` or `orphaned` tells of them next, by their last number."""

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        """A batch was answered; `admitted` holds request_count and size of each admitted claim."""

    def refused(self, name: str, claims: int) -> None:
        """Claims were refused from memory."""

    def resolved(self, name: str, limit: int, resolution: Resolution) -> None:
        """A hold was confirmed or released, as somebody asked for: told the first time only."""

    def given_back(self, name: str, runs: Sequence[Run], numbers: int) -> None:
        """An operator gave these numbers back; so many of them had not been before."""

    def expired(self, name: str, numbers: int) -> None:
        """So many numbers went back because their holds had expired."""

    def unavailable(self, name: str, claims: int) -> None:
        """Claims were given up before the store answered."""

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        """Claims were admitted after whoever made them was told otherwise or was gone."""

    def in_doubt(self, name: str, claims: int) -> None:
        """A batch was given up: whether its claims were admitted will not be known."""

    def lost(self, name: str, seen: Seen | None) -> None:
        """The store no longer has what this worker has seen."""

    def raised(self, name: str, before: int, after: int) -> None:
        """The store had an older count, and was told the one that this worker has seen."""

    def found(self, name: str) -> None:
        """A lost counter counts again."""

    def failed(self, name: str, error: Exception) -> None:
        """The store answered with an error."""


class Journals(Journal):
    """A journal that tells others what it is told."""

    def __init__(self, *journals: Journal) -> None:
        self._journals = journals

    def answered(self, name: str, claims: int, seconds: float, kind: Kind) -> None:
        for journal in self._journals:
            journal.answered(name, claims, seconds, kind)

    def leased(self, name: str, numbers: int) -> None:
        for journal in self._journals:
            journal.leased(name, numbers)

    def scattered(self, name: str, numbers: Sequence[tuple[Run, ...]]) -> None:
        for journal in self._journals:
            journal.scattered(name, numbers)

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        for journal in self._journals:
            journal.settled(name, limit, admitted, refused)

    def refused(self, name: str, claims: int) -> None:
        for journal in self._journals:
            journal.refused(name, claims)

    def resolved(self, name: str, limit: int, resolution: Resolution) -> None:
        for journal in self._journals:
            journal.resolved(name, limit, resolution)

    def given_back(self, name: str, runs: Sequence[Run], numbers: int) -> None:
        for journal in self._journals:
            journal.given_back(name, runs, numbers)

    def expired(self, name: str, numbers: int) -> None:
        for journal in self._journals:
            journal.expired(name, numbers)

    def unavailable(self, name: str, claims: int) -> None:
        for journal in self._journals:
            journal.unavailable(name, claims)

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        for journal in self._journals:
            journal.orphaned(name, limit, admitted)

    def in_doubt(self, name: str, claims: int) -> None:
        for journal in self._journals:
            journal.in_doubt(name, claims)

    def lost(self, name: str, seen: Seen | None) -> None:
        for journal in self._journals:
            journal.lost(name, seen)

    def raised(self, name: str, before: int, after: int) -> None:
        for journal in self._journals:
            journal.raised(name, before, after)

    def found(self, name: str) -> None:
        for journal in self._journals:
            journal.found(name)

    def failed(self, name: str, error: Exception) -> None:
        for journal in self._journals:
            journal.failed(name, error)
