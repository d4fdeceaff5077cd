"""Which request leads where, and the bounds of any request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.web.support import ADMIN, TOKEN, count, exchange, raw

if TYPE_CHECKING:
    from loadtests.rig.service import Service


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("GET", "/favicon.ico", 404),
        ("PATCH", "/", 405),
        ("GET", "/nope", 404),
        ("GET", "//", 404),
        ("GET", "/counters/default/", 404),
        ("HEAD", "/counters/default", 200),
        ("GET", "/counters/", 404),
        ("POST", "/livez", 405),
        ("POST", "/counters", 405),
        ("GET", "/counters", 401),
    ],
)
def test_what_is_no_claim_counts_nothing(api: Service, method: str, path: str, status: int) -> None:
    got, headers, body = raw(api, method, path)
    assert got == status
    if method == "HEAD":
        assert body == b""
    else:
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == status
    if status == 405:
        assert "allow" in headers
    assert count(api) == 0


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", "GET, HEAD, OPTIONS, POST"),
        ("/counters", "GET, HEAD, OPTIONS"),
        ("/counters/default", "DELETE, GET, HEAD, OPTIONS, POST, PUT"),
        ("/livez", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_tell_the_methods_in_a_fixed_order_and_count_nothing(api: Service, path: str, allowed: str) -> None:
    status, headers, body = raw(api, "OPTIONS", path)
    assert (status, headers["allow"], body) == (204, allowed.lower(), b"")
    status, headers, _ = raw(api, "PATCH", path)
    assert (status, headers["allow"]) == (405, allowed.lower())
    assert count(api) == 0


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("line", [b"GET / HTTP/9.9\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"G@T / \r\n\r\n"])
def test_a_malformed_request_line_counts_nothing(api: Service, line: bytes) -> None:
    assert exchange(api, line)[0] in (0, 400, 505)
    assert count(api) == 0


@pytest.mark.parametrize("path", ["/", "/counters/{name}", "/livez", "/watch", "/openapi.json"])
def test_a_query_over_1_kib_is_414_and_counts_nothing(api: Service, name: str, path: str) -> None:
    path = path.format(name=name)
    before = count(api)
    for method in ("GET", "POST", "PUT", "DELETE") if name in path else ("GET",):
        status, headers, body = raw(api, method, f"{path}?n=2&{'x' * 1021}", f"Authorization: Bearer {TOKEN}")
        assert (status, headers["content-type"]) == (414, "application/problem+json")
        assert json.loads(body)["title"] == "URI too long"
    assert (count(api), count(api, name)) == (before, 0)


def test_a_body_over_4_kib_is_413_and_counts_nothing(api: Service, name: str) -> None:
    for method, path in (("POST", f"/counters/{name}"), ("PUT", f"/counters/{name}")):
        authorized = f"Authorization: Bearer {TOKEN}"
        large = b" " * 4097
        assert raw(api, method, path, authorized, "Content-Length: 4097", body=large)[0] == 413
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
        assert raw(api, method, path, authorized, "Transfer-Encoding: chunked", body=chunked)[0] == 413
    assert api.get(f"/counters/{name}")[1] == {
        "name": name,
        "count": 0,
        "limit": 10,
        "remaining": 10,
        "halted": False,
        "leased": 0,
    }


def test_the_longest_key_and_name_work(api: Service) -> None:
    longest = "n" * 64
    assert api.get(f"/counters/{longest}", "PUT", b'{"limit": 9007199254740991}', **ADMIN)[0] in (200, 201)
    assert api.get(f"/counters/{longest}", "POST", Idempotency_Key="k" * 255)[0] == 200
    assert api.get(f"/counters/{longest}", "DELETE", **ADMIN)[0] == 204
