"""The HTTP contract, against the running service under either server."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.service import Service
from pythonricing.web.claim import Claim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtests.rig.redis import RedisServer

TOKEN = "s3cret"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module", params=["granian", "uvicorn"])
def api(
    request: pytest.FixtureRequest, valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    valkey.command("FLUSHALL")
    folder = tmp_path_factory.mktemp("api")
    running = Service(folder, valkey.url, command=request.param, admin_token=TOKEN, halt_cache=0)
    yield running.start("/readyz")
    running.stop()
    running.log()


@pytest.fixture
def name(api: Service, request: pytest.FixtureRequest) -> str:
    """A counter of this test's own with limit 10."""
    counter = request.node.name.split("[")[0][-60:]
    api.get(f"/counters/{counter}", "DELETE", **ADMIN)
    assert api.get(f"/counters/{counter}", "PUT", b'{"limit": 10}', **ADMIN)[0] == 201
    return counter


@pytest.fixture
def default(api: Service) -> None:
    """The counter `default` at 0 of 100."""
    assert api.get("/counters/default", "DELETE", **ADMIN)[0] == 204


def count(api: Service, name: str = "default") -> int:
    counted: int = api.get(f"/counters/{name}")[1]["count"]
    return counted


def exchange(api: Service, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes; the status, the headers and the body of the first answer (0 if there is none)."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split(" ")[1]) if head else 0, headers, body


def raw(api: Service, method: str, path: str, *headers: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    return exchange(api, "\r\n".join(lines).encode() + body)


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_claim_on_default_gets_the_next_number(api: Service, method: str) -> None:
    status, headers, body = raw(api, method, "/")
    assert (status, json.loads(body)) == (200, {"request_count": 1, "limit": 100})
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert api.get("/", method) == (200, {"request_count": 2, "limit": 100})


def test_a_claim_of_n_owns_n_numbers_or_none(api: Service, name: str) -> None:
    assert api.get(f"/counters/{name}?n=4", "POST") == (200, {"request_count": 4, "limit": 10})
    status, problem = api.get(f"/counters/{name}?n=7", "POST")
    assert (status, problem["request_count"], problem["limit"]) == (429, 4, 10)
    assert api.get(f"/counters/{name}?n=6&other=1", "POST") == (200, {"request_count": 10, "limit": 10})
    assert count(api, name) == 10


def test_a_refusal_is_a_problem_with_count_and_limit(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=10", "POST")
    status, headers, body = raw(api, "POST", f"/counters/{name}")
    assert (status, headers["content-type"]) == (429, "application/problem+json")
    assert headers["cache-control"] == "no-store"
    problem = json.loads(body)
    assert problem == {
        "type": "urn:pythonricing:halted",
        "title": "Halted",
        "status": 429,
        "detail": f"10 of 10 are taken on counter {name}: no room for 1 more",
        "request_count": 10,
        "limit": 10,
    }


def test_reading_never_counts(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=10", "POST")
    view = {"name": name, "count": 10, "limit": 10, "remaining": 0, "halted": True}
    assert api.get(f"/counters/{name}") == (200, view)
    assert api.get(f"/counters/{name}") == (200, view)
    assert raw(api, "GET", f"/counters/{name}")[1]["cache-control"] == "no-store"


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("GET", "/favicon.ico", 404),
        ("OPTIONS", "/", 405),
        ("PATCH", "/", 405),
        ("GET", "/nope", 404),
        ("GET", "//", 404),
        ("GET", "/counters/default/", 404),
        ("HEAD", "/counters/default", 200),
        ("OPTIONS", "/counters/default", 405),
        ("GET", "/counters/", 404),
        ("POST", "/livez", 405),
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
@pytest.mark.parametrize("line", [b"GET / HTTP/9.9\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"G@T / \r\n\r\n"])
def test_a_malformed_request_line_counts_nothing(api: Service, line: bytes) -> None:
    assert exchange(api, line)[0] in (0, 400, 505)
    assert count(api) == 0


@pytest.mark.parametrize("query", ["n=0", "n=-1", "n=1.5", "n=x", "n=", "n=1&n=1", "n=9007199254740992", "n=%C2%B2"])
def test_a_bad_n_is_422_and_counts_nothing(api: Service, name: str, query: str) -> None:
    status, problem = api.get(f"/counters/{name}?{query}", "POST")
    assert (status, problem["title"]) == (422, "Unprocessable")
    assert "n must be" in problem["detail"]
    assert count(api, name) == 0


@pytest.mark.parametrize("missing", ["nobody", "bad%20name", "%C3%A9", "a" * 65])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_counter_is_404(api: Service, method: str, missing: str) -> None:
    status, problem = api.get(f"/counters/{missing}", method, **ADMIN)
    assert (status, problem["type"]) == (404, "urn:pythonricing:no-such-counter")


@pytest.mark.parametrize("path", ["/", "/counters/{name}", "/livez", "/watch", "/openapi.json"])
def test_a_query_over_1_kib_is_414_and_counts_nothing(api: Service, name: str, path: str) -> None:
    path = path.format(name=name)
    before = count(api)
    for method in ("GET", "POST", "PUT", "DELETE") if name in path else ("GET",):
        status, headers, body = raw(api, method, f"{path}?n=2&{'x' * 1021}", f"Authorization: Bearer {TOKEN}")
        assert (status, headers["content-type"]) == (414, "application/problem+json")
        assert json.loads(body)["title"] == "URI too long"
    assert (count(api), count(api, name)) == (before, 0)


def test_a_query_of_1_kib_is_read(api: Service, name: str) -> None:
    assert api.get(f"/counters/{name}?n=2&{'x' * 1020}", "POST") == (200, {"request_count": 2, "limit": 10})


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
    }


def test_a_claim_may_have_a_body_that_nobody_reads(api: Service, name: str) -> None:
    async def twice() -> list[tuple[int, Any]]:
        from loadtests.rig.clients import Client

        client = Client(api.port)
        return [await client.request(f"/counters/{name}", "POST", b"x" * 4096) for _ in range(3)]

    assert [status for status, _ in asyncio.run(twice())] == [200, 200, 200]


def test_an_idempotency_key_gets_the_first_answer_again(api: Service, name: str) -> None:
    first = api.get(f"/counters/{name}?n=2", "POST", Idempotency_Key="k1")
    assert first == (200, {"request_count": 2, "limit": 10})
    api.get(f"/counters/{name}?n=8", "POST")
    assert api.get(f"/counters/{name}?n=2", "POST", Idempotency_Key="k1") == first
    refused = api.get(f"/counters/{name}", "POST", Idempotency_Key="k2")
    assert refused[0] == 429
    api.get(f"/counters/{name}", "PUT", b'{"limit": 50}', **ADMIN)
    assert api.get(f"/counters/{name}", "POST", Idempotency_Key="k2") == (
        429,
        {**refused[1], "detail": refused[1]["detail"]},
    )
    assert count(api, name) == 10


def test_a_key_used_for_another_n_is_422(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=2", "POST", Idempotency_Key="k")
    status, problem = api.get(f"/counters/{name}?n=3", "POST", Idempotency_Key="k")
    assert (status, problem["title"]) == (422, "Unprocessable")
    assert count(api, name) == 2


@pytest.mark.parametrize("headers", [("Idempotency-Key: a b",), ("Idempotency-Key:",), ("Idempotency-Key: é",)])
def test_a_bad_key_is_422_and_counts_nothing(api: Service, name: str, headers: tuple[str, ...]) -> None:
    assert raw(api, "POST", f"/counters/{name}", *headers)[0] == 422
    assert raw(api, "POST", f"/counters/{name}", f"Idempotency-Key: {'k' * 256}")[0] == 422
    assert raw(api, "POST", f"/counters/{name}", "Idempotency-Key: a", "Idempotency-Key: b")[0] == 422
    assert count(api, name) == 0


def test_the_longest_key_and_name_work(api: Service) -> None:
    longest = "n" * 64
    assert api.get(f"/counters/{longest}", "PUT", b'{"limit": 9007199254740991}', **ADMIN)[0] in (200, 201)
    assert api.get(f"/counters/{longest}", "POST", Idempotency_Key="k" * 255)[0] == 200
    assert api.get(f"/counters/{longest}", "DELETE", **ADMIN)[0] == 204


def test_the_probes_answer(api: Service) -> None:
    assert api.get("/livez") == (200, {"status": "alive"})
    assert api.get("/readyz") == (200, {"status": "ready"})


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


def test_a_halted_counter_is_refused_from_memory_for_a_while_only(empty_valkey: RedisServer, service: Any) -> None:
    running = service(empty_valkey.url, workers=1, limit=1, halt_cache=60, wait_for="/readyz", admin_token=TOKEN)
    assert [running.get("/")[0] for _ in range(3)] == [200, 429, 429]
    empty_valkey.command("HSET", "pythonricing:{default}", "limit", "5")
    assert running.get("/")[0] == 429
    assert running.get("/counters/default", "PUT", b'{"limit": 5}', **ADMIN)[0] == 200
    assert running.get("/")[0] == 200


def test_what_nobody_expected_is_a_500() -> None:
    class Broken:
        async def claim(self, *arguments: object) -> None:
            raise RuntimeError("a bug")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "path_params": {}, "query_string": b"", "headers": []}
    asyncio.run(Claim(Broken())(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["title"] == "Internal server error"
