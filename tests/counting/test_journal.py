"""Journals: all are told of every event, and no event that there isn't is told."""

from __future__ import annotations

from typing import Any

import pytest

from pythonricing.counting.journal import Journal, Journals
from pythonricing.counting.model import Resolution, Seen
from tests.support import Recorder

EVENTS: dict[str, tuple[Any, ...]] = {
    "answered": ("default", 3, 0.001, "claims"),
    "leased": ("default", 40),
    "scattered": ("default", [((7, 7), (12, 12))]),
    "settled": ("default", 100, [(1, 1)], 2),
    "refused": ("default", 2),
    "resolved": ("default", 100, Resolution("confirmed", 3, ((1, 2),))),
    "given_back": ("default", [(1, 2)], 1),
    "expired": ("default", 2),
    "unavailable": ("default", 2),
    "orphaned": ("default", 100, [(1, 1)]),
    "in_doubt": ("default", 2),
    "lost": ("default", Seen(1, 0, 2, 100)),
    "raised": ("default", 2, 5),
    "found": ("default",),
    "failed": ("default", RuntimeError()),
}


@pytest.mark.parametrize("event", [name for name in vars(Journal) if not name.startswith("_")])
def test_several_journals_are_told_the_same(event: str) -> None:
    first, second = Recorder(), Recorder()
    getattr(Journals(first, second), event)(*EVENTS[event])
    assert first.told == second.told == [(event, *EVENTS[event])]


def test_an_event_that_there_is_not_is_an_error() -> None:
    journals: Any = Journals(Journal())
    with pytest.raises(AttributeError):
        journals.refuse("default", 2)
