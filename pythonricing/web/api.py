"""HTTP in, HTTP out: the endpoints as plain ASGI callables, and the JSON that they read and write."""

from __future__ import annotations

import hmac
import re
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec
from loguru import logger

from pythonricing.counting.model import (
    DEFAULT,
    KeyReused,
    NoSuchCounter,
    Overloaded,
    StateLost,
    StoreRejected,
    StoreUnavailable,
)
from pythonricing.settings import MAX_COUNT, Limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from pythonricing.counting.counters import Counters
    from pythonricing.counting.model import Answer, Counter

#: Bytes of a request's body, at most.
MAX_BODY = 4096
#: Refusals that are kept encoded.
MAX_REFUSALS = 1024

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
KEY = re.compile(rb"[!-~]{1,255}")
SIZE = re.compile(r"[0-9]{1,16}")

JSON = (b"content-type", b"application/json")
PROBLEM_JSON = (b"content-type", b"application/problem+json")
NO_STORE = (b"cache-control", b"no-store")

_encode = msgspec.json.Encoder().encode


class Claimed(msgspec.Struct):
    """An admitted claim of n numbers owns `request_count - n + 1` to `request_count`."""

    request_count: int
    limit: int


class CounterView(msgspec.Struct):
    """A counter as it is read."""

    name: str
    count: int
    limit: int
    remaining: int
    halted: bool


class CounterChange(msgspec.Struct, forbid_unknown_fields=True):
    """What PUT takes."""

    limit: Limit


class Health(msgspec.Struct):
    """What the probes say when all is well.

    `master`: the server that the store's Sentinels name. `unreachable`: the masters of a store's shards that don't
    answer, or slots that no node serves, while the counters of other shards go on.
    """

    status: str
    master: str | msgspec.UnsetType = msgspec.UNSET
    unreachable: list[str] | msgspec.UnsetType = msgspec.UNSET
    lost: list[str] | msgspec.UnsetType = msgspec.UNSET


class ProblemDetails(msgspec.Struct):
    """What is wrong, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str


class Halted(ProblemDetails):
    """The claim finds no room in the counter."""

    request_count: int
    limit: int


class Problem(Exception):
    """An answer that says what is wrong."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        kind: str = "about:blank",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.headers = headers
        self.body = ProblemDetails(kind, title, status, detail)

    async def send(self, send: Send) -> None:
        await respond(send, self.body.status, _encode(self.body), PROBLEM_JSON, NO_STORE, *self.headers)


def halted(name: str, size: int, request_count: int, limit: int) -> Problem:
    detail = f"{request_count} of {limit} are taken on counter {name}: no room for {size} more"
    problem = Problem(429, "Halted", detail)
    problem.body = Halted("urn:pythonricing:halted", "Halted", 429, detail, request_count, limit)
    return problem


def explain(error: Exception, name: str) -> Problem:
    """The answer to what the heart or an endpoint raises."""
    match error:
        case Problem():
            return error
        case NoSuchCounter():
            return Problem(
                404, "No such counter", f"there is no counter {name}", kind="urn:pythonricing:no-such-counter"
            )
        case KeyReused():
            return _unprocessable("the Idempotency-Key was used before for a claim with another n")
        case StateLost():
            return Problem(
                503,
                "State lost",
                f"the store has lost what counter {name} had counted; an operator must set or reset it",
                kind="urn:pythonricing:state-lost",
                headers=((b"retry-after", b"60"),),
            )
        case Overloaded() | StoreUnavailable() | StoreRejected():
            return Problem(
                503,
                "Store unavailable",
                str(error),
                kind="urn:pythonricing:store-unavailable",
                headers=((b"retry-after", b"1"),),
            )
        case _:
            logger.opt(exception=error).error("a request on counter {} failed", name)
            return Problem(500, "Internal server error", "something went wrong here; it has been logged")


def _unprocessable(detail: str) -> Problem:
    return Problem(422, "Unprocessable", detail, kind="urn:pythonricing:unprocessable")


async def respond(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Start(dict[int, dict[str, Any]]):
    """The start of a response by the length of its body, for the answers that are given most."""

    def __init__(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        self._status, self._headers = status, headers

    def __missing__(self, length: int) -> dict[str, Any]:
        headers = [*self._headers, (b"content-length", b"%d" % length)]
        self[length] = {"type": "http.response.start", "status": self._status, "headers": headers}
        return self[length]


_ADMITTED, _REFUSED = Start(200, JSON, NO_STORE), Start(429, PROBLEM_JSON, NO_STORE)
_CLAIM_HEADERS = frozenset((b"idempotency-key", b"content-length", b"transfer-encoding"))


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The request's body. Raises Problem 413 for one over MAX_BODY bytes, without reading on."""
    too_large = Problem(413, "Content too large", f"a body has at most {MAX_BODY} bytes")
    for header, value in scope["headers"]:
        if header == b"content-length" and (not value.isdigit() or int(value) > MAX_BODY):
            raise too_large
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "Bad request", "the connection was closed before the body was complete")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise too_large
        more = message.get("more_body", False)
    return body


def _size(query: bytes) -> int:
    """The `n` of a claim's query string."""
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("n", ["1"])
    if len(values) != 1 or not SIZE.fullmatch(values[0]) or not 1 <= int(values[0]) <= MAX_COUNT:
        raise _unprocessable(f"n must be one whole number from 1 to {MAX_COUNT}")
    return int(values[0])


async def _left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Endpoint(ABC):
    """An ASGI endpoint that answers what it raises."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope.get("path_params", {}).get("name", DEFAULT)
        try:
            await self.answer(name, scope, receive, send)
        except Exception as error:
            await explain(error, name).send(send)

    @abstractmethod
    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what it raises becomes a problem. Raises Problem and what the heart raises."""


class Claim:
    """`GET /`, `POST /`, `POST /counters/{name}?n=1`: a claim. `HEAD /` is answered and counts nothing.

    An Endpoint in all but its layers: each call between the server and the heart would cost every claim.
    """

    def __init__(self, counters: Counters) -> None:
        self._claim = counters.claim
        self._refusals: dict[tuple[str, int, int, int], bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send, name: str = DEFAULT) -> None:
        try:
            if scope["method"] == "HEAD":
                await respond(send, 200, b"", JSON, NO_STORE)
                return
            size = _size(scope["query_string"]) if scope["query_string"] else 1
            key = None
            for header, value in scope["headers"]:
                if header in _CLAIM_HEADERS:
                    if header == b"idempotency-key":
                        if key is not None or not KEY.fullmatch(value):
                            raise _unprocessable(
                                "Idempotency-Key must be 1 to 255 visible ASCII characters, given once"
                            )
                        key = value.decode("ascii")
                    elif value != b"0":
                        await read_body(scope, receive)
            answer = await self._claim(name, size, key, partial(_left, receive))
            if answer.admitted:
                start, body = _ADMITTED, _encode(Claimed(answer.request_count, answer.limit))
            else:
                start, body = _REFUSED, self._refusal(name, size, answer)
            await send(start[len(body)])
            await send({"type": "http.response.body", "body": body})
        except Exception as error:
            await explain(error, name).send(send)

    def _refusal(self, name: str, size: int, answer: Answer) -> bytes:
        """The body of a refusal, encoded once for as long as the same is refused: a sold-out sale is the busiest."""
        key = (name, size, answer.request_count, answer.limit)
        body = self._refusals.get(key)
        if body is None:
            if len(self._refusals) >= MAX_REFUSALS:
                self._refusals.clear()
            body = self._refusals[key] = _encode(halted(*key).body)
        return body


class Manage(Endpoint):
    """`/counters/{name}`: POST claims, GET reads, PUT creates or changes, DELETE forgets."""

    def __init__(self, counters: Counters, admin_token: str | None) -> None:
        super().__init__(counters)
        self._claim = Claim(counters)
        self._admin_token = admin_token

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        valid = NAME.fullmatch(name) is not None
        match scope["method"]:
            case "PUT":
                self._authorize(scope)
                if not valid:
                    raise _unprocessable("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
                await self._put(name, scope, receive, send)
            case "DELETE":
                self._authorize(scope)
                if not valid:
                    raise NoSuchCounter(name)
                await self.counters.delete(name)
                await send({"type": "http.response.start", "status": 204, "headers": [NO_STORE]})
                await send({"type": "http.response.body", "body": b""})
            case method:
                if not valid:
                    raise NoSuchCounter(name)
                if method == "POST":
                    await self._claim(scope, receive, send, name)
                else:
                    await respond(send, 200, _view(await self.counters.read(name)), JSON, NO_STORE)

    async def _put(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive)
        try:
            change = msgspec.json.decode(body, type=CounterChange)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unprocessable(f'the body must be like {{"limit": 500}}: {error}') from None
        counter, created = await self.counters.put(name, change.limit)
        await respond(send, 201 if created else 200, _view(counter), JSON, NO_STORE)

    def _authorize(self, scope: Scope) -> None:
        if self._admin_token is None:
            raise Problem(403, "Forbidden", "no admin token is configured: counters can't be changed over HTTP")
        given = [value for header, value in scope["headers"] if header == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token, self._admin_token.encode()):
            raise Problem(
                401,
                "Unauthorized",
                "changing a counter needs the admin token as a bearer token",
                headers=((b"www-authenticate", b"Bearer"),),
            )


def _view(counter: Counter) -> bytes:
    remaining = max(0, counter.limit - counter.count)
    return _encode(CounterView(counter.name, counter.count, counter.limit, remaining, remaining == 0))


class Live(Endpoint):
    """`GET /livez`: this process answers."""

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, _encode(Health("alive")), JSON, NO_STORE)


class Ready(Endpoint):
    """`GET /readyz`: claims can be served: this process is not stopping, the store answers and has lost nothing."""

    stopping = False

    def __init__(self, counters: Counters, master: Callable[[], str | None]) -> None:
        super().__init__(counters)
        self._master = master

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self.stopping:
            raise Problem(503, "Stopping", "this process is stopping", headers=((b"retry-after", b"1"),))
        condition = await self.counters.check()
        unreachable = msgspec.UNSET if condition.unreachable is None else condition.unreachable
        health = Health("ready", self._master() or msgspec.UNSET, unreachable, condition.lost or msgspec.UNSET)
        await respond(send, 200, _encode(health), JSON, NO_STORE)


async def http_error(request: Request, error: Exception) -> Any:
    """Starlette's own answers (404 for unknown paths, 405, 500), as problems."""
    from starlette.responses import Response

    status = getattr(error, "status_code", 500)
    detail = {404: "there is nothing at this path", 405: "this method is not allowed here"}.get(
        status, "something went wrong here; it has been logged"
    )
    title = {404: "Not found", 405: "Method not allowed"}.get(status, "Internal server error")
    body = _encode(ProblemDetails("about:blank", title, status, detail))
    return Response(body, status, headers=getattr(error, "headers", None), media_type="application/problem+json")
