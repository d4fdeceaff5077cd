"""The claim: the hot path, as plain ASGI, because each layer between the server and the heart costs every claim."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from pythonricing.counting.model import DEFAULT, NAME, NoSuchCounter
from pythonricing.settings import MAX_COUNT
from pythonricing.web import problems, ratelimit
from pythonricing.web.problems import Problem
from pythonricing.web.receive import gone, values
from pythonricing.web.responses import encode

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from pythonricing.counting.model import Answer
    from pythonricing.web.parts import Parts

#: Refusals that are kept encoded.
MAX_REFUSALS = 1024

#: A key as it is, or as a structured field's string has it: in quotes, with a backslash before each quote or backslash.
#: Those without one are tried before, which is 1.5 us less.
KEY = re.compile(rb'[!#-~][!-~]{0,254}|"[!#-\[\]-~]{1,255}"|"(?:[!#-\[\]-~]|\\["\\]){1,255}"')
ESCAPED = re.compile(rb"\\(.)")
SIZE = re.compile(r"[0-9]{1,16}")

_NO_STORE = (b"cache-control", b"no-store")
_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", problems.MEDIA_TYPE.encode())
_CLAIM_HEADERS = frozenset(
    (b"idempotency-key", b"content-length", b"transfer-encoding", b"sec-fetch-site", b"sec-purpose", b"purpose")
)


Number = Annotated[int, Meta(extra_json_schema={"format": "int64"})]
Run = Annotated[tuple[Number, ...], Meta(min_length=2, max_length=2)]


class Claimed(msgspec.Struct):
    """An admitted claim of n numbers owns `request_count - n + 1` to `request_count`, unless there are `numbers`."""

    request_count: int
    limit: int
    numbers: (
        Annotated[
            tuple[Run, ...],
            Meta(
                description="Only where no n numbers in a row are left, but scattered ones that came back: the first "
                "and the last number of each run that the claim owns; request_count is the last of them"
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class Claim:
    """`GET /`, `POST /`, `POST /counters/{name}?n=1`."""

    def __init__(self, parts: Parts) -> None:
        self._claim = parts.counters.claim
        self._bodies = parts.bodies
        self._allowed_origins = parts.allowed_origins
        self._refusals: dict[tuple[str, int, int, int], tuple[bytes, list[tuple[bytes, bytes]]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send, scope["path_params"].get("name", DEFAULT))

    async def answer(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        """Answer a claim on this counter."""
        try:
            if name != DEFAULT and not NAME.fullmatch(name):
                raise NoSuchCounter(name)
            size = _size(scope["query_string"]) if scope["query_string"] else 1
            key = None
            for header, value in scope["headers"]:
                if header in _CLAIM_HEADERS:
                    if header == b"idempotency-key":
                        if key is not None or not KEY.fullmatch(value):
                            raise problems.unprocessable(
                                "Idempotency-Key must be 1 to 255 visible ASCII characters, plain or in quotes, given "
                                "once"
                            )
                        key = _key(value)
                    elif header == b"sec-fetch-site":
                        if value == b"cross-site":
                            self._check_origin(scope)
                    elif header.endswith(b"purpose"):
                        if b"prefetch" in value.lower():
                            raise Problem(403, "Forbidden", "a prefetch may not claim; nothing was counted")
                    elif value != b"0" and await self._bodies.read(scope, receive):
                        raise problems.unprocessable(
                            "a claim has no body: how many numbers it claims is n in the query"
                        )
            answer = await self._claim(name, size, key, partial(gone, receive))
            if answer.admitted:
                claimed = Claimed(answer.request_count, answer.limit)
                if answer.numbers:
                    claimed.numbers = answer.numbers
                status, body = 200, encode(claimed)
                headers = [_JSON, _NO_STORE, (b"content-length", b"%d" % len(body))]
            else:
                status, (body, headers) = 429, self._refusal(name, size, answer)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        except Exception as error:
            await problems.answer(error, name)(scope, receive, send)

    def _check_origin(self, scope: Scope) -> None:
        """Raises Problem unless the page of another site that a browser claims for is of an allowed origin."""
        origins = [value.decode("latin-1") for header, value in scope["headers"] if header == b"origin"]
        if len(origins) != 1 or origins[0] not in self._allowed_origins:
            raise Problem(403, "Forbidden", "a page of another site may not claim here; nothing was counted")

    def _refusal(self, name: str, size: int, answer: Answer) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A refusal's body and headers, made once for as long as the same is refused: a sold-out sale is the busiest.

        Without Retry-After: clients that obey it would come for ever.
        """
        key = (name, size, answer.request_count, answer.limit)
        refusal = self._refusals.get(key)
        if refusal is None:
            if len(self._refusals) >= MAX_REFUSALS:
                self._refusals.clear()
            body = encode(problems.halted(*key))
            left = ratelimit.fields(answer.limit, max(0, answer.limit - answer.request_count))
            fields = [(field.encode(), value.encode()) for field, value in left.items()]
            headers = [_PROBLEM, _NO_STORE, (b"content-length", b"%d" % len(body)), *fields]
            refusal = self._refusals[key] = (body, headers)
        return refusal


def _key(value: bytes) -> str:
    """An idempotency key: in quotes (draft-ietf-httpapi-idempotency-key-header) it is the same as without."""
    if value.startswith(b'"'):
        value = ESCAPED.sub(rb"\1", value[1:-1]) if b"\\" in value else value[1:-1]
    return value.decode("ascii")


def _size(query: bytes) -> int:
    """The `n` of a claim's query string."""
    n = values(query, "n").get("n", "1")
    if not SIZE.fullmatch(n) or not 1 <= int(n) <= MAX_COUNT:
        raise problems.unprocessable(f"n must be one whole number from 1 to {MAX_COUNT}")
    return int(n)
