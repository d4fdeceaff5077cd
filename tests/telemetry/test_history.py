"""The seconds that a server remembers: right across its workers, and for five minutes."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from pythonricing.telemetry import history
from pythonricing.telemetry.history import SPAN, History, read

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.5

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(history, "time", clock)
    return clock


def test_seconds_of_several_workers_add_up(clock: Clock, tmp_path: Path) -> None:
    paths = [tmp_path / "history_0", tmp_path / "history_1"]
    first, second = map(History, paths)
    first.add(2, 1)
    first.add(3, 0)
    second.add(5, 5)
    began = int(clock.now)
    assert read(paths) == []  # the second is not over
    clock.now = began + 1.1
    assert read(paths) == []  # nor has everybody told what was in it
    clock.now = began + 1.3
    assert read(paths) == [(began, 10, 6)]
    assert first.seconds() == [(began, 5, 1)]
    first.add(1, 0)
    clock.now = began + 3.3
    assert read(paths) == [(began, 10, 6), (began + 1, 1, 0)]
    for each in (first, second):
        each.close()


def test_what_is_older_than_five_minutes_is_forgotten(clock: Clock) -> None:
    kept = History(None)
    began = int(clock.now)
    for after in range(SPAN * 2):
        clock.now = began + after + 0.5
        kept.add(1, 0)
    told = kept.seconds()
    assert len(told) == SPAN
    assert {(admitted, refused) for _, admitted, refused in told} == {(1, 0)}
    assert told[-1][0] == int(clock.now) - 1


def test_a_worker_goes_on_in_the_file_of_the_one_before(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "history_0"
    before = History(path)
    before.add(1, 1)
    before.close()
    after = History(path)
    after.add(1, 0)
    after.close()
    clock.now += 2
    assert read([path]) == [(int(clock.now) - 2, 2, 1)]


def test_a_full_disk_costs_the_others_a_second_and_nothing_else(clock: Clock, tmp_path: Path) -> None:
    kept = History(tmp_path / "history_0")
    os.close(kept._file)  # every write fails
    kept._file = os.open(os.devnull, os.O_RDONLY)
    kept.add(1, 0)
    clock.now += 2
    assert kept.seconds() == [(int(clock.now) - 2, 1, 0)]
    assert read([tmp_path / "history_0", tmp_path / "gone"]) == []
    kept.close()


def test_by_the_real_clock() -> None:
    kept = History(None)
    began = time.time()
    kept.add(1, 2)
    assert kept.seconds() in ([], [(int(began), 1, 2)], [(int(began) + 1, 1, 2)])
