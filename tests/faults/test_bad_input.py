"""Whatever is sent to the service: no 5xx, and no count changed by a request that is rejected."""

from __future__ import annotations

import base64
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

from loadtests.rig.redis import RedisServer
from loadtests.rig.service import Service

TOKEN = "secret"
LIMIT = 10**9

SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["granian", "uvicorn"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("bad-input")
    store = RedisServer(folder / "store", None, "--appendfsync", "no").start()
    service = Service(folder, store.url, command=request.param, limit=LIMIT, admin_token=TOKEN, halt_cache=0, lease=0)
    service.start("/readyz")
    yield service
    service.stop()
    store.stop()


def exchange(port: int, data: bytes, *, close: bool = True) -> list[tuple[int, bytes]]:
    """Send bytes as they are, and return the status and body of every answer until the connection ends."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            client.sendall(data)
            if close:
                client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                received += piece
                if not close and _complete(received):
                    break
        except TimeoutError:
            raise
        except OSError:
            pass  # the service has closed the connection: it may do that to what isn't HTTP
    return _answers(received)


def _complete(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    return bool(separator) and len(body) >= _length(head)


def _length(head: bytes) -> int:
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lengths[0]) if lengths else 0


def _answers(received: bytes) -> list[tuple[int, bytes]]:
    answers = []
    while received.startswith(b"HTTP/1."):
        head, _, received = received.partition(b"\r\n\r\n")
        body, received = received[: _length(head)], received[_length(head) :]
        answers.append((int(head.split(b" ")[1]), body))
    return answers


def count(service: Service, name: str = "default") -> int:
    status, body = service.get(f"/counters/{name}")
    assert status == 200, body
    number: int = body["count"]
    return number


def attack(service: Service, data: bytes, *, close: bool = False) -> list[int]:
    """Send bytes; hold that nothing fails and that the count moves by exactly what was admitted."""
    before = count(service)
    answers = exchange(service.port, data, close=close)
    statuses = [status for status, _ in answers]
    assert not [status for status in statuses if status >= 500], (data[:300], answers)
    # A server may take an odd request for a claim, and then find that the client has left before the answer.
    left = not answers and close and data.startswith((b"GET / HTTP/1.1", b"POST / HTTP/1.1"))
    if 200 not in statuses:
        assert count(service) in (before, before + left), (data[:300], answers)
    return statuses


def request(method: bytes, target: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


PATHS = st.sampled_from([b"/", b"/counters/default", b"/counters/none", b"/livez", b"/readyz", b"/counters/", b"/*"])
VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=300).map(str.encode)
HEADER = st.binary(max_size=300).filter(lambda value: not {0, 10, 13} & set(value))
SEGMENT = st.one_of(
    VISIBLE.filter(lambda value: not set(b"#? ") & set(value)),
    st.binary(min_size=1, max_size=40).map(lambda raw: b"".join(b"%%%02x" % byte for byte in raw)),
    st.sampled_from(
        [b"%", b"%2", b"%zz", b"%2f", b"..", b".", b"%00", b"%0a", b"a%2fb", b"x" * 65, b"%c3%28", b"\xff"]
    ),
)


@SETTINGS
@given(
    st.one_of(
        VISIBLE,
        st.integers().map(lambda number: b"n=%d" % number),
        st.sampled_from(
            [
                b"n=",
                b"n",
                b"n=1&n=1",
                b"n=1.0",
                b"n=%31%00",
                b"n=+1",
                b"n=\xc2\xb2",
                b"n=0",
                b"n=9007199254740992",
                b"n=1e3",
                b"n=0x1",
                b"n=-1",
                b"n=%D9%A1",
                b"&&&n=2;n=3",
                b"n=" + b"9" * 5000,
                b"hold=0",
                b"hold=%D9%A1",
                b"hold=99999",
                b"hold=60&hold=60",
                b"hold=" + b"9" * 900,
                b"for=alice",
                b"for=%00",
                b"for=" + b"a" * 129,
            ]
        ),
    )
)
def test_a_bad_query_is_refused(target: Service, query: bytes) -> None:
    query = query.replace(b"#", b"").replace(b" ", b"")
    attack(target, request(b"POST", b"/counters/default?" + query))


@SETTINGS
@given(SEGMENT, st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS"]))
def test_a_bad_name_is_refused(target: Service, segment: bytes, method: bytes) -> None:
    headers = [b"Authorization: Bearer secret"] if method in (b"PUT", b"DELETE") else []
    body = b"{}" if method == b"PUT" else b""
    attack(target, request(method, b"/counters/" + segment, *headers, body=body))


@SETTINGS
@given(
    st.sampled_from([b"holds", b"numbers"]),
    st.one_of(
        SEGMENT,
        st.tuples(st.integers(), st.integers()).map(lambda run: b"%d-%d" % run),
        st.binary(min_size=16, max_size=16).map(lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=")),
        st.sampled_from(
            [b"1-", b"-1", b"0-0", b"2-1", b"1-1025", b"1-9007199254740992", b"%31-1", b"1-1/", b"1-1?n=1"]
        ),
    ),
    st.sampled_from([b"POST", b"DELETE", b"GET", b"PUT"]),
)
def test_a_bad_hold_or_number_is_refused(target: Service, kind: bytes, segment: bytes, method: bytes) -> None:
    statuses = attack(
        target, request(method, b"/counters/default/" + kind + b"/" + segment, b"Authorization: Bearer secret")
    )
    assert kind == b"numbers" or 200 not in statuses  # nobody has a hold


@SETTINGS
@given(st.lists(st.one_of(VISIBLE, HEADER), min_size=1, max_size=2))
@example([b"\xc3\xa9"])
@example([b"k" * 256])
@example([b"a b"])
def test_a_bad_key_is_refused(target: Service, keys: list[bytes]) -> None:
    attack(target, request(b"POST", b"/", *(b"Idempotency-Key: " + key for key in keys)))


@SETTINGS
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["limit", "each", "every", "zone", "x"]), inner)
            ),
            max_leaves=10,
        ).map(lambda value: repr(value).replace("'", '"').encode("utf-8", "surrogatepass")),
        st.sampled_from(
            [
                b"[" * 4000,
                b'{"limit":' * 400,
                b'{"limit": 1e999}',
                b'{"limit": -1}',
                b'{"limit": 9007199254740992}',
                b'{"limit": 1, "limit": "x"}',
                b'{"limit": "5"}',
                b"\xff\xfe",
                b'{"\xff": 1}',
                b'{"limit": true}',
                b'{"limit": 5, "each": 6}',
                b'{"limit": 5, "every": "0s"}',
                b'{"limit": 5, "every": "day", "zone": "../../../etc/passwd"}',
                b'{"limit": 5, "every": "day", "zone": "\\u0000"}',
                b'{"limit": 5, "every": "day", "zone": "Europe"}',
                b'{"limit": 5, "every": "999999999d"}',
            ]
        ),
    )
)
def test_a_bad_body_is_refused(target: Service, body: bytes) -> None:
    answer = exchange(target.port, request(b"PUT", b"/counters/fuzzed", b"Authorization: Bearer secret", body=body))
    for status, _ in answer:
        assert status in (200, 201, 400, 411, 413, 422), (body, answer)
    attack(target, request(b"PUT", b"/counters/default", body=body))


@pytest.mark.parametrize("path", [b"/", b"/counters/default"])
@pytest.mark.parametrize("method", [b"POST", b"PUT"])
def test_a_body_that_is_too_large_is_refused(target: Service, method: bytes, path: bytes) -> None:
    token = b"Authorization: Bearer secret"
    large = b"x" * 5000
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
    refused = (405,) if (method, path) == (b"PUT", b"/") else (413,)
    for data in (
        request(method, path, token, body=large),
        request(method, path, token, b"Content-Length: 99999999999999999999"),
        request(method, path, token, b"Transfer-Encoding: chunked") + chunked,
    ):
        statuses = attack(target, data)
        assert not statuses or statuses[0] in (*refused, 400), data[:100]
    # Announced and never sent: there is no answer to wait for, and no claim.
    attack(target, request(method, path, token, b"Content-Length: 100") + b"x" * 10, close=True)
    attack(target, request(method, path, token, b"Transfer-Encoding: chunked") + b"5\r\nab", close=True)


@SETTINGS
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12).map(str.encode), PATHS)
def test_an_odd_method_is_refused(target: Service, method: bytes, path: bytes) -> None:
    attack(target, request(method, path))


@SETTINGS
@given(
    st.one_of(
        st.binary(min_size=1, max_size=300).filter(lambda data: b"HTTP/1" not in data),
        st.sampled_from(
            [
                b"GET\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
                b"\x16\x03\x01\x02\x00",
                b"\r\n" * 50,
                b"POST http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: x\r\nn: " + b"y" * 70000,
            ]
        ),
    )
)
def test_what_is_not_http_is_refused(target: Service, data: bytes) -> None:
    attack(target, data, close=True)


@SETTINGS
@given(st.lists(st.tuples(st.from_regex(rb"\A[a-z][a-z0-9-]{0,20}\Z"), HEADER), max_size=8), PATHS)
def test_odd_headers_are_borne(target: Service, headers: list[tuple[bytes, bytes]], path: bytes) -> None:
    fields = [name + b": " + value for name, value in headers if name not in (b"content-length", b"transfer-encoding")]
    attack(target, request(b"GET" if path != b"/" else b"HEAD", path, *fields), close=True)


def test_the_service_has_borne_it_all(target: Service) -> None:
    """Run last: no worker has died, and nothing unexpected is in the log."""
    assert target.get("/readyz")[0] == 200
    rare = [r for r in target.log() if r["level"]["name"] in ("ERROR", "CRITICAL")]
    assert rare == []
    assert target.terminate() == 0
