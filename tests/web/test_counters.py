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
    view = {"name": name, "count": 10, "limit": 10, "remaining": 0, "halted": True}
    assert api.get(f"/counters/{name}") == (200, view)
    assert api.get(f"/counters/{name}") == (200, view)
    assert raw(api, "GET", f"/counters/{name}")[1]["cache-control"] == "no-store"


@pytest.mark.parametrize("missing", ["nobody", "bad%20name", "%C3%A9", "a" * 65])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_counter_is_404(api: Service, method: str, missing: str) -> None:
    status, problem = api.get(f"/counters/{missing}", method, **ADMIN)
    assert (status, problem["type"]) == (404, "urn:pythonricing:no-such-counter")


def test_put_creates_and_changes_the_limit(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=3", "POST")
    status, view = api.get(f"/counters/{name}", "PUT", b'{"limit": 2}', **ADMIN)
    assert (status, view) == (200, {"name": name, "count": 3, "limit": 2, "remaining": 0, "halted": True})


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
    view = {"name": "default", "count": 0, "limit": 100, "remaining": 100, "halted": False}
    assert api.get("/counters/default") == (200, view)


def test_without_a_token_nothing_can_be_changed(valkey: RedisServer, service: Any) -> None:
    running = service("memory://", workers=1)
    for method in ("PUT", "DELETE"):
        status, problem = running.get("/counters/default", method, b'{"limit": 5}', **ADMIN)
        assert (status, problem["title"]) == (403, "Forbidden")


def test_a_limit_from_the_settings_is_set_at_start_and_otherwise_kept(empty_valkey: RedisServer, service: Any) -> None:
    first = service(empty_valkey.url, workers=1, limit=5, wait_for="/readyz")
    assert first.get("/")[1] == {"request_count": 1, "limit": 5}
    first.stop()
    second = service(empty_valkey.url, workers=1, wait_for="/readyz")
    assert second.get("/")[1] == {"request_count": 2, "limit": 5}
    second.stop()
    third = service(empty_valkey.url, workers=1, limit=7, wait_for="/readyz")
    assert third.get("/")[1] == {"request_count": 3, "limit": 7}
