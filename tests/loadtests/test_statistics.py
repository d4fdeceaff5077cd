from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from loadtests.statistics import EQUAL, FEWEST, MOST, PRIMARY, Ratio, enough, holm, of_logs, ratio

#: The numbers of slices that the lab offers: --quick's, the exploratory ones', the primary ones' from first to last.
ON_OFFER = (6, 8, 10, 12, 16, 20, 40, 60, 80, 120)
HISTORIES = 2000


def of(logs: list[float]) -> Ratio:
    found = of_logs(logs)
    assert found is not None
    return found


def noise(draw: random.Random, slices: int) -> list[float]:
    """Log ratios of equals: drift of which each pair keeps a little, outliers, and a side that goes first by turns."""
    drift, logs = 0.0, []
    for number in range(slices):
        drift = 0.9 * drift + draw.gauss(0, 0.03)
        outlier = draw.choice((-1, 1)) * draw.expovariate(4) if draw.random() < 0.05 else 0.0
        turn = 1 if number % 4 in (0, 3) else -1
        logs.append(draw.gauss(0, 0.05) + 0.1 * drift * turn + outlier)
    return logs


@pytest.mark.parametrize("slices", ON_OFFER)
def test_equals_are_said_to_differ_at_most_as_often_as_is_claimed(slices: int) -> None:
    histories = HISTORIES if slices <= 40 else HISTORIES // 5
    draw = random.Random(slices)
    alarms = sum(of(noise(draw, slices)).verdict == "differs" for _ in range(histories))
    # 5 %, and three standard errors of a simulation of this length.
    assert alarms / histories <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / histories)


def test_stopping_by_width_makes_no_more_false_alarms() -> None:
    draw, alarms, lengths = random.Random(5), 0, set()
    for _ in range(400):
        logs = noise(draw, MOST)
        stop = next((n for n in range(PRIMARY, MOST + 1, 8) if enough([of(logs[:n])], 0.025)), MOST)
        lengths.add(stop)
        alarms += of(logs[:stop]).verdict == "differs"
    assert len(lengths) > 3
    assert alarms / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_the_interval_has_the_true_ratio_as_often_as_it_says() -> None:
    draw = random.Random(9)
    found = [of([math.log(1.2) + log for log in noise(draw, 12)]) for _ in range(1000)]
    assert sum(each.low <= 1.2 <= each.high for each in found) >= 0.94 * 1000


def test_with_six_slices_the_interval_is_their_range_and_its_p_is_exact() -> None:
    found = of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.low, found.high) == pytest.approx((math.exp(0.1), math.exp(0.6)))
    assert found.value == pytest.approx(math.exp(0.35))
    assert found.p == 2 / 2**6
    assert found.verdict == "differs"


def test_p_is_that_of_all_signs_counted_out() -> None:
    logs = [0.3, -0.1, 0.7, 0.25, -0.45, 0.6, 0.15]
    ranks = {log: rank for rank, log in enumerate(sorted(logs, key=abs), 1)}
    seen = sum(rank for log, rank in ranks.items() if log < 0)
    sums = [sum(chosen) for size in range(8) for chosen in combinations(range(1, 8), size)]
    assert of(logs).p == pytest.approx(2 * sum(each <= seen for each in sums) / 2**7)


def test_the_interval_leaves_1_out_exactly_where_p_says_that_they_differ() -> None:
    draw = random.Random(3)
    for _ in range(300):
        found = of([draw.gauss(0.03, 0.05) for _ in range(draw.randrange(FEWEST, 30))])
        assert (found.p <= 0.05) == (not found.low <= 1 <= found.high)


def test_below_six_slices_there_is_the_range_and_no_verdict() -> None:
    found = of([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (found.low, found.high) == pytest.approx((math.exp(0.1), math.exp(0.5)))
    assert found.verdict == "too few slices"
    assert found.reaches(0.5, at_least=True) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "p", "says"),
    [
        (0.96, 1.04, 0.9, "equal within 5 %"),
        (0.86, 1.16, 0.5, "undecided"),
        (0.96, 1.06, 0.5, "undecided"),
        (1.02, 1.04, 0.01, "differs"),
    ],
)
def test_there_are_three_words(low: float, high: float, p: float, says: str) -> None:
    assert Ratio(1.0, low, high, 40, p).verdict == says


def test_an_aim_is_judged_by_the_bound() -> None:
    found = Ratio(1.0, 0.79, 1.06, 40, 0.5)
    assert [found.reaches(aim, at_least=True) for aim in (0.75, 0.9, 1.1)] == ["reached", "undecided", "missed"]
    assert [found.reaches(aim, at_least=False) for aim in (0.75, 0.9, 1.1)] == ["missed", "undecided", "reached"]


def test_a_ratio_is_taken_slice_by_slice() -> None:
    # Every slice is twice as slow as the last one for both: only the pairing shows that ours is always 1.5 times.
    theirs = {number: 100.0 * 2**number for number in range(8)}
    found = ratio({number: value * 1.5 for number, value in theirs.items()}, theirs)
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_slices_that_one_side_did_not_finish_are_left_out() -> None:
    found = ratio({1: 10.0, 2: 10.0, 4: 10.0}, {1: 5.0, 3: 1.0, 4: 5.0})
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert found.slices == 2
    assert ratio({1: 1.0}, {2: 1.0}) is None


def test_slices_that_are_alike_to_the_last_digit_say_nothing() -> None:
    assert of([0.0] * 20).p == 1
    assert of([0.0] * 20).verdict == "equal within 5 %"


def test_exploratory_ones_are_adjusted_for_how_many_they_are() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert Ratio(1.1, 1.01, 1.2, 12, 0.03).judged(0.06) == "undecided"


def test_it_stops_by_the_width_and_by_nothing_else() -> None:
    narrow, wide, few = Ratio(2, 1.99, 2.01, 40, 0), Ratio(2, 1.5, 2.5, 40, 0), Ratio(1, 1, 1, PRIMARY - 1, 1)
    assert enough([narrow], EQUAL - 1)
    assert not enough([narrow, wide], EQUAL - 1)
    assert not enough([few], EQUAL - 1)
    assert not enough([None], EQUAL - 1)
