"""Holds, claimants, give-backs and renewals over HTTP, and what is sent wrong: then nothing has changed."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.waiting import wait_until
from tests.web.support import ADMIN, exchange, raw

if TYPE_CHECKING:
    from loadtests.rig.service import Service

UNKNOWN = "A" * 22


def put(api: Service, name: str, **rules: Any) -> dict[str, Any]:
    status, counter = api.get(f"/counters/{name}", "PUT", json.dumps({"limit": 10, **rules}).encode(), **ADMIN)
    assert status == 200, counter
    return dict(counter)


def held(api: Service, name: str, query: str = "n=2&hold=600") -> str:
    """A claim's hold, by its path."""
    status, claimed = api.get(f"/counters/{name}?{query}", "POST")
    assert status == 200, claimed
    return f"/counters/{name}/holds/{claimed['hold']}"


def state(api: Service, name: str) -> Any:
    return api.get(f"/counters/{name}")[1]


def test_a_held_claim_says_how_it_is_confirmed_and_when_it_expires(api: Service, name: str) -> None:
    before = time.time()
    status, claimed = api.get(f"/counters/{name}?n=2&hold=600", "POST")
    assert (status, claimed["request_count"], claimed["limit"]) == (200, 2, 10)
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", claimed["hold"])
    assert 600 <= datetime.fromisoformat(claimed["expires"]).timestamp() - before <= 602 + time.time() - before
    assert state(api, name)["held"] == 2
    assert claimed["hold"] not in json.dumps(state(api, name))


def test_a_hold_is_confirmed_once_and_the_same_again_gets_the_same_answer(api: Service, name: str) -> None:
    path = held(api, name)
    confirmed = (200, {"outcome": "confirmed", "held": 2, "numbers": [[1, 2]]})
    assert api.get(path, "POST") == api.get(path, "POST") == api.get(f"{path}?n=2", "POST") == confirmed
    assert "held" not in state(api, name)
    status, problem = api.get(path, "DELETE")
    assert (status, problem["type"], problem["outcome"]) == (409, "urn:pythonricing:hold-resolved", "confirmed")
    assert problem["numbers"] == [[1, 2]]
    assert state(api, name)["count"] == 2


def test_a_hold_is_given_back_once_and_the_same_again_gets_the_same_answer(api: Service, name: str) -> None:
    path = held(api, name)
    released = (200, {"outcome": "released", "held": 2, "numbers": []})
    assert api.get(path, "DELETE") == api.get(path, "DELETE") == released
    status, problem = api.get(path, "POST")
    assert (status, problem["outcome"], problem["numbers"]) == (409, "released", [])
    counter = state(api, name)
    assert (counter["count"], counter["given_back"], "held" in counter) == (0, 2, False)
    # Nobody else gets a number that somebody was told of.
    assert api.get(f"/counters/{name}", "POST")[1]["request_count"] == 3


def test_a_hold_is_confirmed_in_part(api: Service, name: str) -> None:
    path = held(api, name, "n=4&hold=600")
    assert api.get(f"{path}?n=1", "POST") == (200, {"outcome": "confirmed", "held": 4, "numbers": [[1, 1]]})
    assert state(api, name)["count"] == 1
    assert api.get(f"{path}?n=2", "POST")[0] == 409


def test_an_expired_hold_is_gone(api: Service, name: str) -> None:
    path = held(api, name, "hold=1")
    wait_until(lambda: state(api, name)["count"] == 0, "the hold to expire")
    for method in ("POST", "DELETE"):
        status, problem = api.get(path, method)
        assert (status, problem["type"]) == (410, "urn:pythonricing:hold-expired")


def test_a_refusal_says_when_a_hold_may_expire(api: Service, name: str) -> None:
    held(api, name, "n=10&hold=600")
    status, headers, _ = raw(api, "POST", f"/counters/{name}")
    assert status == 429
    assert 590 <= int(headers["retry-after"]) <= 602
    assert "retry-after" not in raw(api, "POST", f"/counters/{name}?n=11")[1]  # it never fits
    other = f"{name[:50]}.other"
    api.get(f"/counters/{other}", "DELETE", **ADMIN)
    assert api.get(f"/counters/{other}", "PUT", b'{"limit": 5}', **ADMIN)[0] == 201
    held(api, other, "n=2&hold=600")
    api.get(f"/counters/{other}?n=2", "POST")
    assert "retry-after" in raw(api, "POST", f"/counters/{other}?n=3")[1]
    assert "retry-after" not in raw(api, "POST", f"/counters/{other}?n=4")[1]  # though all that is held came back


def test_a_key_gets_its_hold_again(api: Service, name: str) -> None:
    first = api.get(f"/counters/{name}?hold=600", "POST", Idempotency_Key="held")
    assert api.get(f"/counters/{name}?hold=60", "POST", Idempotency_Key="held") == first
    assert api.get(f"/counters/{name}", "POST", Idempotency_Key="held")[0] == 422
    assert state(api, name)["count"] == 1


def test_a_claimant_gets_at_most_so_many(api: Service, name: str) -> None:
    assert put(api, name, each=3)["each"] == 3
    assert api.get(f"/counters/{name}?n=2&for=alice", "POST")[0] == 200
    status, headers, body = raw(api, "POST", f"/counters/{name}?n=2&for=alice")
    problem = json.loads(body)
    assert (status, problem["violated-policies"], problem["each"], problem["request_count"]) == (429, ["each"], 3, 2)
    assert problem["detail"] == f"one claimant may have 3 of counter {name} at once: no room for 2 more"
    assert headers["ratelimit-policy"] == '"limit";q=10, "each";q=3'
    path = held(api, name, "n=1&hold=600&for=zoe")
    assert "retry-after" not in raw(api, "POST", f"/counters/{name}?n=2&for=alice")[1]  # it is another's hold
    assert api.get(path, "DELETE")[0] == 200
    assert api.get(f"/counters/{name}?n=3&for=bob", "POST")[0] == 200
    api.get(f"/counters/{name}/numbers/1-1", "DELETE", **ADMIN)
    assert api.get(f"/counters/{name}?n=2&for=alice", "POST")[0] == 200
    api.get(f"/counters/{name}?n=3&for=carol", "POST")
    status, problem = api.get(f"/counters/{name}?n=2&for=dave", "POST")
    assert (status, problem["violated-policies"]) == (429, ["limit"])
    _, headers, _ = raw(api, "POST", f"/counters/{name}?n=2&for=dave")
    assert headers["ratelimit-policy"] == '"limit";q=10, "each";q=3'
    assert headers["ratelimit-policy"] == raw(api, "GET", f"/counters/{name}")[1]["ratelimit-policy"]


def test_an_operator_gives_numbers_back_each_once(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=10", "POST")
    assert api.get(f"/counters/{name}", "POST")[0] == 429
    assert api.get(f"/counters/{name}/numbers/2-4", "DELETE", **ADMIN) == (200, {"given_back": 3})
    assert api.get(f"/counters/{name}/numbers/4-5", "DELETE", **ADMIN) == (200, {"given_back": 1})
    assert api.get(f"/counters/{name}/numbers/2-5", "DELETE", **ADMIN) == (200, {"given_back": 0})
    counter = state(api, name)
    assert (counter["count"], counter["given_back"], counter["remaining"]) == (6, 4, 4)
    assert api.get(f"/counters/{name}?n=4", "POST")[1]["request_count"] == 14


def test_giving_back_needs_the_token(api: Service, name: str) -> None:
    api.get(f"/counters/{name}", "POST")
    assert api.get(f"/counters/{name}/numbers/1-1", "DELETE")[0] == 401
    assert state(api, name)["count"] == 1


@pytest.mark.parametrize(
    ("numbers", "status", "says"),
    [
        ("1-3", 404, "never given"),
        ("7-7", 404, "never given"),
        ("2-1", 422, "backwards"),
        ("0-1", 422, "from 1"),
        ("01-02", 422, "such as 7-9"),
        ("1", 422, "such as 7-9"),
        ("x-y", 422, "such as 7-9"),
        ("1-9007199254740992", 422, "such as 7-9"),
        ("1-1025", 422, "at most 1024"),
        ("1-2?n=1", 422, "no query string"),
    ],
)
def test_numbers_that_can_t_go_back_are_told(api: Service, name: str, numbers: str, status: int, says: str) -> None:
    api.get(f"/counters/{name}?n=2", "POST")
    got, problem = api.get(f"/counters/{name}/numbers/{numbers}", "DELETE", **ADMIN)
    assert (got, says in problem["detail"]) == (status, True), problem
    assert state(api, name)["count"] == 2


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("hold=0", "hold must be"),
        ("hold=x", "hold must be"),
        ("hold=", "hold must be"),
        ("hold=-1", "hold must be"),
        ("hold=1.5", "hold must be"),
        ("hold=86401", "hold must be"),
        ("hold=60&hold=60", "once"),
        ("for=a&for=b", "once"),
        ("for=", "for must be"),
        (f"for={'x' * 129}", "for must be"),
        ("for=a%20b", "for must be"),
        ("for=a+b", "for must be"),
        ("for=%C3%A9", "for must be"),
        ("for=alice", "no limit for each"),
        ("n=1025&hold=60", "at most 1024"),
        ("held=60", "only n, hold and for"),
    ],
)
def test_a_bad_wish_is_422_and_counts_nothing(api: Service, name: str, query: str, says: str) -> None:
    status, problem = api.get(f"/counters/{name}?{query}", "POST")
    assert (status, says in problem["detail"]) == (422, True), problem
    assert state(api, name)["count"] == 0


def test_a_claim_for_nobody_is_422_where_each_has_a_limit(api: Service, name: str) -> None:
    put(api, name, each=3)
    status, problem = api.get(f"/counters/{name}", "POST")
    assert (status, "for must say who" in problem["detail"]) == (422, True)
    assert state(api, name)["count"] == 0


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"each": 0}, "each"),
        ({"each": 11}, "above the limit"),
        ({"each": "4"}, "each"),
        ({"every": "0s"}, "every is"),
        ({"every": "367d"}, "every is"),
        ({"every": "year"}, "every is"),
        ({"every": "1.5h"}, "every is"),
        ({"every": ""}, "left out"),
        ({"every": 60}, "every"),
        ({"every": "day", "zone": "Mars/Olympus"}, "no time zone"),
        ({"every": "day", "zone": "../../etc/passwd"}, "no time zone"),
        ({"every": "day", "zone": "localtime"}, "no time zone"),
        ({"every": "day", "zone": "posix/Europe/Berlin"}, "no time zone"),
        ({"every": "day", "zone": ""}, "left out"),
        ({"every": "1d", "zone": "Europe/Berlin"}, "a zone is for"),
        ({"zone": "Europe/Berlin"}, "a zone is for"),
        ({"evry": "day"}, "evry"),
    ],
)
def test_bad_rules_are_422_and_change_nothing(api: Service, name: str, rules: dict[str, Any], says: str) -> None:
    before = state(api, name)
    body = json.dumps({"limit": 10, **rules}).encode()
    status, problem = api.get(f"/counters/{name}", "PUT", body, **ADMIN)
    assert (status, says in problem["detail"]) == (422, True), problem
    assert state(api, name) == before


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_an_unknown_hold_is_404(api: Service, name: str, method: str) -> None:
    path = held(api, name)
    other = f"{name[:50]}.other"
    api.get(f"/counters/{other}", "PUT", b'{"limit": 10}', **ADMIN)
    id = path.rpartition("/")[2]
    for unknown in (UNKNOWN, "x", "A" * 23, "%20" * 22):
        status, problem = api.get(f"/counters/{name}/holds/{unknown}", method)
        assert (status, problem["type"]) == (404, "urn:pythonricing:no-such-hold")
    # It is bound to its counter.
    assert api.get(f"/counters/{other}/holds/{id}", method)[1]["type"] == "urn:pythonricing:no-such-hold"
    assert api.get(f"/counters/none/holds/{id}", method)[1]["type"] == "urn:pythonricing:no-such-counter"
    assert state(api, name)["held"] == 2


@pytest.mark.parametrize(
    ("method", "query", "says"),
    [
        ("POST", "n=3", "more than the 2"),
        ("POST", "n=0", "n must be"),
        ("POST", "n=x", "n must be"),
        ("POST", "n=1&n=1", "once"),
        ("POST", "hold=60", "only n"),
        ("DELETE", "n=1", "given back whole"),
    ],
)
def test_a_bad_resolution_is_422_and_resolves_nothing(
    api: Service, name: str, method: str, query: str, says: str
) -> None:
    path = held(api, name)
    status, problem = api.get(f"{path}?{query}", method)
    assert (status, says in problem["detail"]) == (422, True), problem
    assert state(api, name)["held"] == 2


def test_a_resolution_has_no_body_and_comes_from_no_other_site(api: Service, name: str) -> None:
    path = held(api, name)
    for method in ("POST", "DELETE"):
        status, problem = api.get(path, method, b'{"n": 1}')
        assert (status, "no body here" in problem["detail"]) == (422, True)
        assert ("confirmed" in problem["detail"]) is (method == "POST")
        status, problem = api.get(path, method, Sec_Fetch_Site="cross-site")
        assert (status, "claim" in problem["detail"], "nothing was changed" in problem["detail"]) == (403, False, True)
    assert state(api, name)["held"] == 2
    assert api.get(path, "GET")[0] == 405


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "?n=1", b""),
        ("DELETE", "", b"{}"),
        ("PUT", "?every=day", b'{"limit": 5}'),
        ("GET", "?x=1", b""),
        ("GET", "", b"x"),
        ("DELETE", "/numbers/1-1?foo=1", b""),
        ("DELETE", "/numbers/1-1", b"hello"),
    ],
)
def test_what_would_be_ignored_is_422_and_does_nothing(
    api: Service, name: str, method: str, path: str, body: bytes
) -> None:
    api.get(f"/counters/{name}", "POST")
    before = state(api, name)
    status, problem = api.get(f"/counters/{name}{path}", method, body, **ADMIN)
    assert (status, ("no body" if body and "?" not in path else "no query string") in problem["detail"]) == (422, True)
    assert state(api, name) == before


def test_a_counter_renews_and_says_when(api: Service, name: str) -> None:
    counter = put(api, name, every="1d")
    assert counter["every"] == "1d"
    renews = datetime.fromisoformat(counter["renews"]).timestamp()
    assert renews % 86_400 == 0
    assert 0 < renews - time.time() <= 86_401
    api.get(f"/counters/{name}?n=10", "POST")
    for method in ("POST", "GET"):
        _, headers, _ = raw(api, method, f"/counters/{name}")
        resets = re.fullmatch(r'"limit";r=0;t=(\d+)', headers["ratelimit"])
        assert resets is not None
        assert abs(int(resets[1]) - (renews - time.time())) < 60
        assert headers.get("retry-after") == (resets[1] if method == "POST" else None)
    counter = put(api, name, every="month", zone="Europe/Berlin")
    assert (counter["every"], counter["zone"], counter["count"]) == ("month", "Europe/Berlin", 10)
    assert "every" not in put(api, name)


def test_a_window_of_a_second_is_renewed(api: Service, name: str) -> None:
    put(api, name, every="1s")
    assert api.get(f"/counters/{name}?n=10", "POST")[0] == 200
    wait_until(lambda: api.get(f"/counters/{name}?n=10", "POST")[0] == 200, "the next window")


def test_log_and_metrics_tell_what_became_of_holds_and_numbers(api: Service, name: str) -> None:
    for method, query in (("POST", "?n=1"), ("DELETE", "")):
        assert api.get(held(api, name) + query, method)[0] == 200
    api.get(f"/counters/{name}?n=2", "POST")
    assert api.get(f"/counters/{name}/numbers/5-6", "DELETE", **ADMIN)[0] == 200
    held(api, name, "n=3&hold=1")
    held(api, name, "n=4&hold=600")
    wait_until(lambda: state(api, name)["count"] == 5, "a hold to expire")

    said: list[dict[str, Any]] = [
        {"counter": name, "numbers": [[1, 1]], "confirmed": 1, "released": 1},
        {"counter": name, "numbers": [], "released": 2},
        {"counter": name, "numbers": [[5, 6]], "given_back": 2},
        {"counter": name, "expired": 3},
    ]

    def logged() -> list[dict[str, Any]]:
        extras = [record["extra"] for record in api.log() if record["extra"].get("counter") == name]
        return [extra for extra in extras if "request_count" not in extra]

    wait_until(lambda: len(logged()) == len(said), "four lines of the log")
    assert [extra for extra in logged() if extra not in said] == []

    def metric(what: str) -> float | None:
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        found = re.search(rf'^pythonricing_{what}{{counter="{name}"}} (\S+)$', exchange(api, request)[2].decode(), re.M)
        return None if found is None else float(found[1])

    expected = {"numbers_held": 4, "numbers_given_back": 8, "numbers_taken": 5, "numbers_expired_total": 3}
    wait_until(lambda: {what: metric(what) for what in expected} == expected, f"the metrics to say {expected}")


def test_no_hold_s_id_is_in_a_log_a_metric_or_a_page(api: Service, name: str) -> None:
    ids = [held(api, name, f"n=1&hold={seconds}").rpartition("/")[2] for seconds in (600, 600, 1)]
    api.get(f"/counters/{name}/holds/{ids[0]}", "POST")
    api.get(f"/counters/{name}/holds/{ids[1]}", "DELETE")
    api.get(f"/counters/{name}/holds/{ids[0]}", "DELETE")
    wait_until(lambda: state(api, name)["count"] == 1, "a hold to expire")
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    shown = exchange(api, request)[2].decode() + json.dumps(state(api, name)) + api.output.read_text()
    assert name in shown
    assert not [id for id in ids if id in shown]
