from __future__ import annotations

import random
import statistics

import pytest

from loadtests.statistics import Estimate, Histogram, estimate, paired_ratio


def of(values: list[float]) -> Estimate:
    found = estimate(values)
    assert found is not None
    return found


def test_an_estimate_is_the_median_with_an_interval_around_it() -> None:
    value = of([10.0, 12.0, 11.0, 30.0, 9.0])
    assert value.median == 11.0
    assert 9.0 <= value.low <= 11.0 <= value.high <= 30.0
    assert value.rounds == 5


def test_the_same_rounds_give_the_same_interval() -> None:
    assert estimate([1.0, 2.0, 3.0]) == estimate([1.0, 2.0, 3.0])


def test_the_interval_contains_the_true_median_about_as_often_as_it_says() -> None:
    draw = random.Random(7)
    hits = 0
    for _ in range(60):
        value = of([draw.gauss(100, 10) for _ in range(15)])
        hits += value.low <= 100 <= value.high
    assert hits >= 51


def test_no_values_give_no_estimate() -> None:
    assert estimate([]) is None


def test_a_ratio_is_taken_round_by_round() -> None:
    # Every round is twice as slow as the last one for both: only the pairing shows that ours is always 1.5 times.
    theirs = {1: 100.0, 2: 200.0, 3: 400.0}
    ours = {number: value * 1.5 for number, value in theirs.items()}
    ratio = paired_ratio(ours, theirs)
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 1.5, 1.5)
    assert ratio.differs_from_one


def test_rounds_that_one_side_did_not_finish_are_left_out() -> None:
    ratio = paired_ratio({1: 10.0, 2: 10.0, 4: 10.0}, {1: 5.0, 3: 1.0, 4: 5.0})
    assert ratio is not None
    assert (ratio.median, ratio.rounds) == (2.0, 2)
    assert paired_ratio({1: 1.0}, {2: 1.0}) is None


def test_an_interval_that_contains_one_says_nothing() -> None:
    assert not of([0.9, 1.0, 1.1, 1.2]).differs_from_one
    assert not of([2.0]).differs_from_one


def test_intervals_overlap_when_they_share_a_value() -> None:
    assert of([1.0, 2.0]).overlaps(of([2.0, 3.0]))
    assert not of([1.0, 2.0]).overlaps(of([2.5, 3.0]))


def test_a_histogram_is_right_to_two_percent() -> None:
    draw = random.Random(3)
    values = [draw.lognormvariate(0, 1) for _ in range(5000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    cuts = statistics.quantiles(values, n=100)
    for percent in (50, 95, 99):
        assert histogram.percentile(percent) == pytest.approx(cuts[percent - 1], rel=0.03)
    assert histogram.percentile(100) == pytest.approx(max(values), rel=0.02)
    assert histogram.mean == pytest.approx(statistics.mean(values))
    assert Histogram().percentile(99) == 0
