from __future__ import annotations

from typing import Any

import pytest

from loadtests.checks import Checker, Numbers, SaleChecker, Wrong


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


def sale(abandoned: int, confirmed: int, limit: int = 3) -> SaleChecker:
    """So many claims of one, the first ones of which are abandoned and the next ones confirmed."""
    checker = SaleChecker(limit)
    for number in range(1, abandoned + confirmed + 1):
        claim(checker, number, limit)
        if number <= abandoned:
            checker.back += 1
        else:
            checker.confirm(200, b'{"numbers": [[%d, %d]]}' % (number, number), 1)
    return checker


def test_what_is_held_counts_once_it_is_confirmed() -> None:
    checker = sale(2, 3)
    checker.sold_out = True
    assert (checker.given, checker.back) == (3, 2)
    checker.balance(3, singles=True)


def test_only_so_many_pass_the_limit_as_went_back() -> None:
    with pytest.raises(Wrong, match="over the limit"):
        claim(sale(2, 3), 6, 3)


def test_a_sale_that_does_not_sell_out_exactly_is_wrong() -> None:
    few, many = sale(0, 2), sale(2, 3)
    many.confirm(200, b'{"numbers": [[1, 1]]}', 1)
    for checker, says in ((few, "sold out with 2 of 3 sold"), (many, "4 of 3 sold")):
        checker.sold_out = True
        with pytest.raises(Wrong, match=says):
            checker.balance(checker.given, singles=True)
    with pytest.raises(Wrong, match="the counter reads 2, claims were given 3"):
        sale(0, 3).balance(2, singles=True)


def test_a_hold_that_expires_before_it_is_confirmed_goes_back() -> None:
    checker = sale(0, 0)
    claim(checker, 1, 3)
    checker.confirm(410, b"{}", 1)
    assert (checker.given, checker.back) == (0, 1)


@pytest.mark.parametrize(("status", "body"), [(200, b"{}"), (200, b'{"numbers": [[1, 2]]}'), (409, b"{}"), (0, b"")])
def test_a_confirmation_of_something_else_is_wrong(status: int, body: bytes) -> None:
    with pytest.raises(Wrong):
        sale(0, 0).confirm(status, body, 1)
