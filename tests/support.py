"""What tests of the heart and the stores need beside real parts."""

from __future__ import annotations

from typing import Any

from pythonricing.counting.journal import Journal

#: A journal that keeps nothing.
Silence = Journal


class Recorder(Journal):
    """A journal that keeps every event that it is told of."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in vars(Journal) and not name.startswith("_"):
            return lambda *what: self.told.append((name, *what))
        return super().__getattribute__(name)
