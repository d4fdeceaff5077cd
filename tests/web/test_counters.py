"""Counters are read by everybody, and changed by whoever has the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.web.support import ADMIN, TOKEN, raw

if TYPE_CHECKING:
    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


def test_reading_never_counts(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=10", "POST")
    view = {"name": name, "count": 10, "limit": 10, "remaining": 0, "halted": True, "leased": 0}
    assert api.get(f"/counters/{name}") == (200, view)
    assert api.get(f"/counters/{name}") == (200, view)
    for method in ("GET", "HEAD"):
        _, headers, _ = raw(api, method, f"/counters/{name}")
        assert headers["cache-control"] == "no-store"
        assert (headers["ratelimit-policy"], headers["ratelimit"]) == ('"limit";q=10', '"limit";r=0')


def test_the_fields_of_a_counter_have_at_most_15_digits(api: Service, name: str) -> None:
    api.get(f"/counters/{name}", "PUT", b'{"limit": 9007199254740991}', **ADMIN)
    _, headers, _ = raw(api, "GET", f"/counters/{name}")
    assert headers["ratelimit-policy"] == f'"limit";q={"9" * 15}'
    assert headers["ratelimit"] == f'"limit";r={"9" * 15}'


@pytest.mark.parametrize("missing", ["nobody", "bad%20name", "%C3%A9", "a" * 65])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_counter_is_404(api: Service, method: str, missing: str) -> None:
    status, problem = api.get(f"/counters/{missing}", method, **ADMIN)
    assert (status, problem["type"]) == (404, "urn:pythonricing:no-such-counter")


def test_a_new_counter_is_201_and_says_where_it_is(api: Service, name: str) -> None:
    authorized = f"Authorization: Bearer {TOKEN}"
    for limit, status in ((5, 200), (5, 201)):
        body = b'{"limit": %d}' % limit
        got, headers, _ = raw(api, "PUT", f"/counters/{name}", authorized, f"Content-Length: {len(body)}", body=body)
        assert (got, headers.get("location")) == (status, f"/counters/{name}" if status == 201 else None)
        assert api.get(f"/counters/{name}")[0] == 200
        api.get(f"/counters/{name}", "DELETE", **ADMIN)


def test_the_counters_are_listed_page_by_page(api: Service) -> None:
    names = [f"list-{number:02}" for number in range(5)]
    for each in names:
        assert api.get(f"/counters/{each}", "PUT", b'{"limit": 10}', **ADMIN)[0] == 201
    api.get("/counters/list-01?n=10", "POST")
    status, page = api.get("/counters?after=list-00&limit=2", **ADMIN)
    assert (status, page["after"]) == (200, "list-02")
    assert page["counters"] == [
        {"name": "list-01", "count": 10, "limit": 10, "remaining": 0, "halted": True, "leased": 0},
        {"name": "list-02", "count": 0, "limit": 10, "remaining": 10, "halted": False, "leased": 0},
    ]
    found, after = [], ""
    while after is not None:
        status, page = api.get(f"/counters?limit=2&after={after}", **ADMIN)
        assert status == 200
        found += [counter["name"] for counter in page["counters"]]
        after = page.get("after")
    assert found == sorted(found)
    assert [each for each in found if each.startswith("list-")] == names
    assert "after" not in api.get("/counters", **ADMIN)[1]
    for each in names:
        api.get(f"/counters/{each}", "DELETE", **ADMIN)


def test_a_counter_whose_data_is_lost_is_listed_as_lost(valkey: RedisServer, api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=3", "POST")
    valkey.command("HSET", f"pythonricing:{{{name}}}", "lost", "1")  # as the first worker to notice it leaves it
    assert api.get(f"/counters/{name}", "POST")[0] == 503
    [view] = [each for each in api.get("/counters", **ADMIN)[1]["counters"] if each["name"] == name]
    assert view["lost"]
    assert api.get(f"/counters/{name}", "DELETE", **ADMIN)[0] == 204


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "after=%20", "before=a", "limit=1&limit=1"]
)
def test_a_list_that_can_not_be_asked_for_is_422(api: Service, query: str) -> None:
    status, problem = api.get(f"/counters?{query}", **ADMIN)
    assert (status, problem["title"]) == (422, "Unprocessable")


def test_the_list_needs_the_token(api: Service) -> None:
    for method in ("GET", "HEAD"):
        status, headers, _ = raw(api, method, "/counters", "Authorization: Bearer wrong")
        assert (status, headers["www-authenticate"]) == (401, "bearer")


def test_put_creates_and_changes_the_limit(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=3", "POST")
    status, view = api.get(f"/counters/{name}", "PUT", b'{"limit": 2}', **ADMIN)
    assert (status, view) == (200, {"name": name, "count": 3, "limit": 2, "remaining": 0, "halted": True, "leased": 0})


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff", b'{"limit": -1}', b'{"limit": "5"}', b'{"limit": 1.5}'),
        *(b'{"limit": 9007199254740992}', b'{"limit": 5, "count": 1}', b'{"limit": null}', b'{"limit": 1e400}'),
    ],
)
def test_a_bad_body_is_422_and_changes_nothing(api: Service, name: str, body: bytes) -> None:
    status, problem = api.get(f"/counters/{name}", "PUT", body, **ADMIN)
    assert (status, problem["title"]) == (422, "Unprocessable")
    assert api.get(f"/counters/{name}")[1]["limit"] == 10


@pytest.mark.parametrize("bad", ["bad%20name", "%C3%A9", "a" * 65])
def test_a_bad_name_can_not_be_created(api: Service, bad: str) -> None:
    assert api.get(f"/counters/{bad}", "PUT", b'{"limit": 5}', **ADMIN)[0] == 422


@pytest.mark.parametrize(
    "headers", [(), ("Authorization: Bearer wrong",), ("Authorization: Basic s3cret",), ("Authorization: s3cret",)]
)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_changing_needs_the_token(api: Service, name: str, method: str, headers: tuple[str, ...]) -> None:
    body = b'{"limit": 99}' if method == "PUT" else b""
    status, answered, _ = raw(api, method, f"/counters/{name}", f"Content-Length: {len(body)}", *headers, body=body)
    assert (status, answered["www-authenticate"]) == (401, "bearer")
    assert api.get(f"/counters/{name}")[1]["limit"] == 10


def test_two_tokens_are_none(api: Service, name: str) -> None:
    both = [f"Authorization: Bearer {TOKEN}"] * 2
    assert raw(api, "DELETE", f"/counters/{name}", *both)[0] in (400, 401)


def test_delete_forgets(api: Service, name: str) -> None:
    status, _, body = raw(api, "DELETE", f"/counters/{name}", f"Authorization: bearer {TOKEN}")
    assert (status, body) == (204, b"")
    assert api.get(f"/counters/{name}")[0] == 404
    assert api.get(f"/counters/{name}", "POST")[0] == 404


def test_default_comes_back_at_zero(api: Service) -> None:
    api.get("/")
    assert api.get("/counters/default", "DELETE", **ADMIN) == (204, None)
    view = {"name": "default", "count": 0, "limit": 100, "remaining": 100, "halted": False, "leased": 0}
    assert api.get("/counters/default") == (200, view)


def test_without_a_token_nothing_can_be_changed(valkey: RedisServer, service: Any) -> None:
    running = service("memory://", workers=1)
    for method in ("PUT", "DELETE"):
        status, problem = running.get("/counters/default", method, b'{"limit": 5}', **ADMIN)
        assert (status, problem["title"]) == (403, "Forbidden")
    assert running.get("/counters", **ADMIN)[0] == 403


def test_a_limit_from_the_settings_is_set_at_start_and_otherwise_kept(empty_valkey: RedisServer, service: Any) -> None:
    first = service(empty_valkey.url, workers=1, limit=5, wait_for="/readyz")
    assert first.get("/")[1] == {"request_count": 1, "limit": 5}
    first.stop()
    second = service(empty_valkey.url, workers=1, wait_for="/readyz")
    assert second.get("/")[1] == {"request_count": 2, "limit": 5}
    second.stop()
    third = service(empty_valkey.url, workers=1, limit=7, wait_for="/readyz")
    assert third.get("/")[1] == {"request_count": 3, "limit": 7}
