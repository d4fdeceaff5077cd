from __future__ import annotations

from typing import Any

import pytest

from loadtests.checks import Checker, Numbers, Wrong


def claim(checker: Any, number: Any, limit: Any = 100, status: Any = 200, size: Any = 1) -> None:
    checker.check(status, b'{"request_count": %d, "limit": %d}' % (number, limit), size)


def test_each_number_is_new_once() -> None:
    numbers = Numbers()
    assert [numbers.add(n) for n in (1, 2, 1, 65536, 65536, 2**50, 2**50)] == [
        True,
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_right_answers_pass() -> None:
    checker = Checker(100)
    claim(checker, 1)
    claim(checker, 3, size=2)
    claim(checker, 100)
    claim(checker, 100, status=429)
    claim(checker, 99, status=429, size=2)


@pytest.mark.parametrize(
    ("number", "size"),
    [(5, 1), (6, 2), (4, 1)],
)
def test_a_number_given_twice_is_wrong(number: Any, size: Any) -> None:
    checker = Checker(100)
    claim(checker, 5, size=2)
    with pytest.raises(Wrong, match="given twice"):
        claim(checker, number, size=size)


def test_a_number_over_the_limit_is_wrong() -> None:
    with pytest.raises(Wrong, match="over the limit"):
        claim(Checker(100), 101)


def test_a_refusal_while_there_is_room_is_wrong() -> None:
    with pytest.raises(Wrong, match="room"):
        claim(Checker(100), 99, status=429)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"request_count": "1", "limit": 2}', b"null"])
def test_other_json_is_wrong(body: Any) -> None:
    with pytest.raises(Wrong, match="not the JSON"):
        Checker(100).check(200, body, 1)


@pytest.mark.parametrize(("status", "says"), [(503, "503: store"), (500, "500"), (404, "404"), (0, "no answer")])
def test_another_status_is_named(status: Any, says: str) -> None:
    with pytest.raises(Wrong, match=says):
        Checker(100).check(status, b"store", 1)


def test_the_limit_is_known_from_whoever_set_it() -> None:
    with pytest.raises(Wrong, match="a limit of 101 where 100 was set"):
        claim(Checker(100), 101, limit=101)


def test_what_was_given_is_held_against_the_count() -> None:
    checker = Checker(100)
    claim(checker, 3, size=3)
    with pytest.raises(Wrong, match="no answer"):
        checker.check(0, b"", 2)
    for count in (3, 5):
        checker.balance(count, singles=True)
    for count in (2, 6):
        with pytest.raises(Wrong, match=f"the counter reads {count}, claims were given 3"):
            checker.balance(count, singles=True)


def test_whoever_refuses_single_claims_has_given_all() -> None:
    checker = Checker(2)
    claim(checker, 1, limit=2)
    claim(checker, 2, limit=2, status=429)
    checker.balance(1, singles=False)
    with pytest.raises(Wrong, match="refused with 1 of 2 given"):
        checker.balance(1, singles=True)
