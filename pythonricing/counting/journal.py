"""Who is told of what happened to claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.model import Seen


class Journal(Protocol):
    """Who is told of what happened to claims, a batch at a time."""

    def answered(self, name: str, claims: int, seconds: float) -> None:
        """The store answered a batch of this many claims, this long after it was sent (for the last time)."""

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        """A batch was answered; `admitted` holds request_count and size of each admitted claim."""

    def refused(self, name: str, claims: int) -> None:
        """Claims were refused from memory."""

    def unavailable(self, name: str, claims: int) -> None:
        """Claims were given up before the store answered."""

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        """Claims were admitted after whoever made them was told otherwise or had left."""

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


class Journals:
    """A journal that tells others what it is told: each of what it has a method for."""

    def __init__(self, *journals: object) -> None:
        self._journals = journals

    def __getattr__(self, event: str) -> Callable[..., None]:
        tellers = [getattr(journal, event) for journal in self._journals if hasattr(journal, event)]

        def tell(*what: Any) -> None:
            for teller in tellers:
                teller(*what)

        # Looked up once.
        setattr(self, event, tellers[0] if len(tellers) == 1 else tell)
        return tell
