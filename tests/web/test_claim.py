"""Claims over HTTP: admitted, refused, repeated, and what is no claim's business."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.clients import Client
from tests.docs_check import ROOT
from tests.web.support import ADMIN, TOKEN, count, exchange, raw

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


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
    assert api.get(f"/counters/{name}?n=6", "POST") == (200, {"request_count": 10, "limit": 10})
    assert count(api, name) == 10


def test_a_refusal_is_a_problem_with_count_and_limit(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=10", "POST")
    status, headers, body = raw(api, "POST", f"/counters/{name}")
    assert (status, headers["content-type"]) == (429, "application/problem+json")
    assert headers["cache-control"] == "no-store"
    problem = json.loads(body)
    assert problem == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Request cannot be satisfied as assigned quota has been exceeded",
        "status": 429,
        "detail": f"10 of 10 are taken on counter {name}: no room for 1 more",
        "request_count": 10,
        "limit": 10,
        "violated-policies": ["limit"],
    }


def test_a_refusal_says_what_is_left_and_never_to_come_again(api: Service, name: str) -> None:
    api.get(f"/counters/{name}?n=8", "POST")
    for _ in range(2):  # the second is the first one's, kept
        status, headers, _ = raw(api, "POST", f"/counters/{name}?n=3")
        assert (status, headers["ratelimit-policy"], headers["ratelimit"]) == (429, '"limit";q=10', '"limit";r=2')
    api.get(f"/counters/{name}?n=2", "POST")
    status, headers, _ = raw(api, "POST", f"/counters/{name}")
    assert (status, headers["ratelimit"]) == (429, '"limit";r=0')
    assert "retry-after" not in headers  # sold out: whoever obeyed it would come for ever
    api.get(f"/counters/{name}", "PUT", b'{"limit": 4}', **ADMIN)
    assert raw(api, "POST", f"/counters/{name}")[1]["ratelimit"] == '"limit";r=0'  # and not -6


@pytest.mark.parametrize("query", ["n=0", "n=-1", "n=1.5", "n=x", "n=", "n=1&n=1", "n=9007199254740992", "n=%C2%B2"])
def test_a_bad_n_is_422_and_counts_nothing(api: Service, name: str, query: str) -> None:
    status, problem = api.get(f"/counters/{name}?{query}", "POST")
    assert (status, problem["title"]) == (422, "Unprocessable")
    assert "n must be" in problem["detail"]
    assert count(api, name) == 0


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("query", ["N=2", "count=2", "n=2&other=1", "x", "n=2&%6e=3"])
def test_an_unknown_query_name_is_422_and_counts_nothing(api: Service, name: str, query: str) -> None:
    for method, path in (("POST", f"/counters/{name}"), ("GET", "/"), ("POST", "/")):
        status, problem = api.get(f"{path}?{query}", method)
        assert (status, problem["title"]) == (422, "Unprocessable")
        assert "only n" in problem["detail"] or "once" in problem["detail"]
    assert count(api) == 0
    assert count(api, name) == 0


def test_a_claim_that_the_counter_could_never_hold_is_told_so(api: Service, name: str) -> None:
    path = f"/counters/{name}"
    never = f"counter {name} holds 10 in all: a claim of 11 can't be admitted however few are taken"
    status, problem = api.get(f"{path}?n=11", "POST")
    assert (status, problem["detail"], problem["request_count"]) == (429, never, 0)
    assert api.get(f"{path}?n=10", "POST")[0] == 200
    assert api.get(f"{path}?n=11", "POST")[1]["detail"] == never
    # What no counter at all could hold isn't even asked.
    assert api.get(f"{path}?n=9007199254740992", "POST")[0] == 422


def test_a_claim_has_no_body(api: Service, name: str) -> None:
    async def twice() -> list[tuple[int, Any]]:
        client = Client(api.port)
        return [await client.request(f"/counters/{name}", "POST", body) for body in (b"x" * 4096, b'{"n": 2}', b"")]

    assert [status for status, _ in asyncio.run(twice())] == [422, 422, 200]
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (8, b'{"n": 2}')
    assert raw(api, "POST", f"/counters/{name}", "Transfer-Encoding: chunked", body=chunked)[0] == 422
    assert raw(api, "POST", f"/counters/{name}", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")[0] == 200
    assert count(api, name) == 2


def test_a_query_of_1_kib_is_read(api: Service, name: str) -> None:
    assert api.get(f"/counters/{name}?n=2{'&' * 1021}", "POST") == (200, {"request_count": 2, "limit": 10})


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


@pytest.mark.parametrize(
    ("plain", "quoted"),
    [
        ("abc", '"abc"'),
        ("7c0e5fd2-58a1-4f0e-9a3b-2d6c1b9e4f70", '"7c0e5fd2-58a1-4f0e-9a3b-2d6c1b9e4f70"'),
        ('a"b\\c', r'"a\"b\\c"'),
        ("k" * 255, f'"{"k" * 255}"'),
    ],
)
def test_a_key_in_quotes_is_the_same_key(api: Service, name: str, plain: str, quoted: str) -> None:
    for key, other in ((plain, quoted), (quoted, plain)):
        api.get(f"/counters/{name}", "DELETE", **ADMIN)
        api.get(f"/counters/{name}", "PUT", b'{"limit": 10}', **ADMIN)
        first = api.get(f"/counters/{name}", "POST", Idempotency_Key=key)
        assert first == (200, {"request_count": 1, "limit": 10})
        assert api.get(f"/counters/{name}", "POST", Idempotency_Key=other) == first
        assert count(api, name) == 1


@pytest.mark.parametrize(
    "key", ["a b", "", "é", "k" * 256, '"', '""', '"a', '"a"b"', '"a b"', r'"a\b"', '"a";b=1', '"a\\"']
)
def test_a_bad_key_is_422_and_counts_nothing(api: Service, name: str, key: str) -> None:
    assert raw(api, "POST", f"/counters/{name}", f"Idempotency-Key: {key}")[0] == 422
    assert raw(api, "POST", f"/counters/{name}", f'Idempotency-Key: "{"k" * 256}"')[0] == 422
    assert raw(api, "POST", f"/counters/{name}", "Idempotency-Key: a", "Idempotency-Key: b")[0] == 422
    assert count(api, name) == 0


def test_a_halted_counter_is_refused_from_memory_for_a_while_only(empty_valkey: RedisServer, service: Any) -> None:
    running = service(empty_valkey.url, workers=1, limit=1, halt_cache=60, wait_for="/readyz", admin_token=TOKEN)
    assert [running.get("/")[0] for _ in range(3)] == [200, 429, 429]
    empty_valkey.command("HSET", "pythonricing:{default}", "limit", "5")
    assert running.get("/")[0] == 429
    assert running.get("/counters/default", "PUT", b'{"limit": 5}', **ADMIN)[0] == 200
    assert running.get("/")[0] == 200


@pytest.mark.parametrize("name", [".", "..", "%2e%2e"])
def test_names_that_clients_resolve_away_are_no_counters(api: Service, name: str) -> None:
    assert raw(api, "POST", f"/counters/{name}")[0] in (404, 400)
    assert raw(api, "PUT", f"/counters/{name}", f"Authorization: Bearer {TOKEN}", "Content-Length: 0")[0] in (404, 422)


def test_a_page_of_another_site_claims_nothing(api: Service, name: str) -> None:
    origins: list[dict[str, Any]] = [{}, {"Origin": "https://evil.example"}]
    for headers in origins:
        status, problem = api.get(f"/counters/{name}", "POST", Sec_Fetch_Site="cross-site", **headers)
        assert (status, problem["title"]) == (403, "Forbidden")
    assert count(api, name) == 0
    for site in ("same-origin", "same-site", "none"):
        assert api.get(f"/counters/{name}", "POST", Sec_Fetch_Site=site)[0] == 200


def test_pages_of_allowed_origins_claim_and_read_the_answer(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    origins = "https://shop.example, https://b.example"
    running = service(empty_valkey.url, "/readyz", workers=1, limit=1, allowed_origins=origins)
    allowed = ("Sec-Fetch-Site: cross-site", "Origin: https://shop.example")
    status, headers, _ = raw(running, "POST", "/", *allowed)
    assert (status, headers["access-control-allow-origin"]) == (200, "https://shop.example")
    status, headers, _ = raw(running, "OPTIONS", "/counters/a", *allowed, "Access-Control-Request-Method: POST")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://shop.example")
    assert raw(running, "POST", "/", "Sec-Fetch-Site: cross-site", "Origin: https://evil.example")[0] == 403
    assert count(running) == 1
    for _ in range(2):  # the second is the first one's, kept as it was
        status, headers, _ = raw(running, "POST", "/", *allowed)
        assert (status, headers["access-control-expose-headers"]) == (429, "ratelimit, ratelimit-policy, retry-after")
        assert "access-control-allow-origin" not in raw(running, "POST", "/")[1]


def test_a_claim_above_the_largest_claim_of_its_counter_is_422(api: Service, name: str) -> None:
    path = f"/counters/{name}"
    status, body = api.get(path, "PUT", b'{"limit": 99, "most": 10}', **ADMIN)
    assert (status, body["most"]) == (200, 10)
    status, problem = api.get(f"{path}?n=11", "POST")
    assert (status, problem["detail"]) == (422, f"a claim on counter {name} takes at most 10")
    assert api.get(f"{path}?n=10", "POST") == (200, {"request_count": 10, "limit": 99})
    assert "most" not in api.get(path, "PUT", b'{"limit": 99}', **ADMIN)[1]
    assert api.get(f"{path}?n=11", "POST")[0] == 200


@pytest.mark.parametrize("most", ["0", "-1", "1.5", '"x"', "9007199254740992"])
def test_a_bad_largest_claim_is_422_and_changes_nothing(api: Service, name: str, most: str) -> None:
    assert api.get(f"/counters/{name}", "PUT", f'{{"limit": 5, "most": {most}}}'.encode(), **ADMIN)[0] == 422
    assert api.get(f"/counters/{name}")[1]["limit"] == 10


def test_a_body_that_never_comes_is_given_up(api: Service, name: str) -> None:
    head = f"POST /counters/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    status, headers, _ = exchange(api, head.encode())  # and then nothing
    assert (status, headers["connection"]) == (408, "close")
    assert count(api, name) == 0


@pytest.mark.parametrize(
    "header", ["Sec-Purpose: prefetch", "Sec-Purpose: prefetch;prerender", "Purpose: prefetch", "Purpose: Prefetch"]
)
@pytest.mark.usefixtures("default")
def test_a_prefetch_is_403_and_counts_nothing(api: Service, name: str, header: str) -> None:
    for method, path in (("GET", "/"), ("POST", f"/counters/{name}")):
        status, headers, body = raw(api, method, path, header)
        assert (status, headers["content-type"]) == (403, "application/problem+json")
        assert "prefetch" in json.loads(body)["detail"]
    assert raw(api, "POST", f"/counters/{name}", "Sec-Purpose: something-else")[0] == 200
    assert (count(api), count(api, name)) == (0, 1)


def test_get_only_reads_where_it_is_told_to(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, "/readyz", limit=5, get_claims="off")
    assert running.get("/", "POST") == (200, {"request_count": 1, "limit": 5})
    view = {"name": "default", "count": 1, "limit": 5, "remaining": 4, "halted": False, "leased": 0}
    assert [running.get("/") for _ in range(3)] == [(200, view)] * 3
    status, headers, _ = raw(running, "GET", "/", "Sec-Purpose: prefetch")
    assert (status, headers["ratelimit"], headers["cache-control"]) == (200, '"limit";r=4', "no-store")
    assert running.get("/openapi.json")[1]["paths"]["/"]["get"]["operationId"] == "readDefault"
    assert count(running) == 1


def test_blanks_around_a_header_are_no_part_of_it(api: Service, name: str) -> None:
    for key in ("abc", "abc ", "\tabc \t"):
        status, _, body = raw(api, "POST", f"/counters/{name}", f"Idempotency-Key: {key}")
        assert (status, json.loads(body)["request_count"]) == (200, 1)
    for method, path in (("POST", ""), ("POST", f"/holds/{'A' * 22}"), ("DELETE", f"/holds/{'A' * 22}")):
        assert raw(api, method, f"/counters/{name}{path}", "Sec-Fetch-Site: cross-site ")[0] == 403
    assert count(api, name) == 1


@pytest.mark.usefixtures("default")
def test_the_first_minutes_show_what_it_answers(api: Service) -> None:
    page = (ROOT / "docs/first-steps.md").read_text().splitlines()
    assert raw(api, "GET", "/")[2].decode() in page
    assert raw(api, "POST", "/counters/seats?N=4")[2].decode() in page
    body = b'{"limit": 3}'
    headers = f"Authorization: Bearer {TOKEN}", f"Content-Length: {len(body)}"
    assert raw(api, "PUT", "/counters/coupons", *headers, body=body)[2].decode() in page
    assert api.get("/counters/coupons", "DELETE", **ADMIN)[0] == 204
