from __future__ import annotations

from typing import Any

import pytest

from loadtests.audit import judge
from loadtests.rig.clients import Call, History

LIMITS = {"a": 6, "b": 4}


def claim(
    counter: str, n: int, number: int, status: int = 200, key: str | None = None, limit: int | None = None
) -> Call:
    return Call(n, status, {"request_count": number, "limit": limit or LIMITS[counter]}, key, counter)


RIGHT = [
    *(claim("a", 2, 2), claim("a", 3, 5, key="k"), claim("a", 3, 5, key="k"), claim("a", 2, 5, 429), claim("a", 1, 6)),
    *(claim("a", 1, 6, 429), claim("b", 4, 4), claim("b", 1, 4, 429)),
]
READINGS = {name: {"count": limit, "limit": limit} for name, limit in LIMITS.items()}


def test_whoever_gives_every_number_once_is_exact() -> None:
    found = judge(History(RIGHT), LIMITS, READINGS)
    assert found.verdict == "exact"
    assert (found.admitted, found.distinct, found.limit, found.refused) == (10, 10, 10, 3)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({4: claim("a", 1, 7)}, "a: 1 numbers over the limit"),
        ({4: claim("a", 1, 5)}, "a: 1 numbers given twice"),
        ({0: claim("a", 1, 2)}, "a: 1 numbers given to nobody"),
        ({4: claim("a", 1, 5, 429)}, "a: 1 refused while there was room"),
        ({4: claim("a", 1, 6, 429)}, "a: undersold by 1"),
        ({2: claim("a", 3, 4, key="k")}, "a: oversold by 1"),
        ({6: Call(4, 503, {}, None, "b")}, "b: 1 failed answers (status 503)"),
        ({6: Call(4, 0, None, None, "b")}, "b: 1 failed answers (status 0)"),
        ({6: claim("b", 4, 4, limit=6)}, "b: the limit is 4, answers say [6]"),
        ({7: claim("a", 1, 6, 429)}, "b: no claim was refused in the end"),
    ],
)
def test_every_kind_of_wrong_is_told(changed: dict[int, Call], says: str) -> None:
    calls = [changed.get(place, call) for place, call in enumerate(RIGHT)]
    assert says in judge(History(calls), LIMITS, READINGS).verdict.split("; ")


@pytest.mark.parametrize("reading", [None, {"count": 3, "limit": 4}, {"count": 4, "limit": 5}])
def test_a_counter_that_reads_otherwise_is_told(reading: Any) -> None:
    assert f"b: it reads {reading}" in judge(History(RIGHT), LIMITS, READINGS | {"b": reading}).verdict
