"""The claim: the hot path, as plain ASGI, because each layer between the server and the heart costs every claim."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from pythonricing.counting.model import CLAIMANT, DEFAULT, MAX_HOLD_SECONDS, MAX_NUMBERS, NAME, NoSuchCounter
from pythonricing.web import problems, ratelimit
from pythonricing.web.problems import Problem, Run
from pythonricing.web.receive import check_origin, gone, size, values
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
SECONDS = re.compile(r"[0-9]{1,5}")

_NO_STORE = (b"cache-control", b"no-store")
_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", problems.MEDIA_TYPE.encode())
_CLAIM_HEADERS = frozenset(
    (b"idempotency-key", b"content-length", b"transfer-encoding", b"sec-fetch-site", b"sec-purpose", b"purpose")
)


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
    hold: (
        Annotated[
            str,
            Meta(description="Only of a claim with `hold`: the id that confirms it or gives it back; keep it secret"),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    expires: (
        Annotated[
            datetime,
            Meta(tz=True, description="When a hold's numbers go back unless it is confirmed, by the store's clock"),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class Claim:
    """`GET /`, `POST /`, `POST /counters/{name}?n=1&hold=600&for=alice`."""

    def __init__(self, parts: Parts) -> None:
        self._claim = parts.counters.claim
        self._bodies = parts.bodies
        self._allowed_origins = parts.allowed_origins
        self._refusals: dict[tuple[str | int, ...], tuple[bytes, list[tuple[bytes, bytes]]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send, scope["path_params"].get("name", DEFAULT))

    async def answer(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        """Answer a claim on this counter."""
        try:
            if name != DEFAULT and not NAME.fullmatch(name):
                raise NoSuchCounter(name)
            query = scope["query_string"]
            n, hold, claimant = _asked(query) if query else (1, 0, "")
            key = None
            for header, value in scope["headers"]:
                if header in _CLAIM_HEADERS:
                    value = value.strip(b" \t")
                    if header == b"idempotency-key":
                        if key is not None or not KEY.fullmatch(value):
                            raise problems.unprocessable(
                                "Idempotency-Key must be 1 to 255 visible ASCII characters, plain or in quotes, given "
                                "once"
                            )
                        key = _key(value)
                    elif header == b"sec-fetch-site":
                        if value == b"cross-site":
                            check_origin(scope, self._allowed_origins, "claim here; nothing was counted")
                    elif header.endswith(b"purpose"):
                        if b"prefetch" in value.lower():
                            raise Problem(403, "Forbidden", "a prefetch may not claim; nothing was counted")
                    elif value != b"0" and await self._bodies.read(scope, receive):
                        raise problems.unprocessable(
                            "a claim has no body: how many numbers it claims is n in the query"
                        )
            if hold or claimant:
                claiming = self._claim(name, n, key, partial(gone, receive), hold=hold, claimant=claimant)
            else:
                claiming = self._claim(name, n, key, partial(gone, receive))
            answer = await claiming
            if answer.admitted:
                claimed = Claimed(answer.request_count, answer.limit)
                if answer.numbers:
                    claimed.numbers = answer.numbers
                if answer.hold:
                    claimed.hold, claimed.expires = answer.hold, datetime.fromtimestamp(answer.expires, UTC)
                status, body = 200, encode(claimed)
                headers = [_JSON, _NO_STORE, (b"content-length", b"%d" % len(body))]
            else:
                status, (body, headers) = 429, self._refusal(name, n, answer)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        except Exception as error:
            await problems.answer(error, name)(scope, receive, send)

    def _refusal(self, name: str, n: int, answer: Answer) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A refusal's body and headers, made once for as long as the same is refused: a sold-out sale is the busiest.

        With Retry-After only where waiting can help: else clients that obey it would come for ever.
        """
        each, capped, resets, again = answer.each, answer.capped, ceil(answer.resets), ceil(answer.retry_after)
        key = (name, n, answer.request_count, answer.limit, each, capped, resets, again)
        refusal = self._refusals.get(key)
        if refusal is None:
            if len(self._refusals) >= MAX_REFUSALS:
                self._refusals.clear()
            body = encode(problems.halted(name, n, answer.request_count, answer.limit, each if capped else 0))
            left = ratelimit.fields(answer.limit, max(0, answer.limit - answer.request_count), each, resets)
            if again:
                left["retry-after"] = str(again)
            fields = [(field.encode(), value.encode()) for field, value in left.items()]
            headers = [_PROBLEM, _NO_STORE, (b"content-length", b"%d" % len(body)), *fields]
            refusal = self._refusals[key] = (body, headers)
        return refusal


def _key(value: bytes) -> str:
    """An idempotency key: in quotes (draft-ietf-httpapi-idempotency-key-header) it is the same as without."""
    if value.startswith(b'"'):
        value = ESCAPED.sub(rb"\1", value[1:-1]) if b"\\" in value else value[1:-1]
    return value.decode("ascii")


def _asked(query: bytes) -> tuple[int, int, str]:
    """What a claim's query string asks for: how many numbers, for how many seconds (0: for good), and for whom."""
    asked = values(query, "n", "hold", "for")
    n, hold, claimant = size(asked.get("n", "1")), 0, asked.get("for", "")
    if "hold" in asked:
        if not SECONDS.fullmatch(asked["hold"]) or not 1 <= int(asked["hold"]) <= MAX_HOLD_SECONDS:
            raise problems.unprocessable(f"hold must be one whole number of seconds from 1 to {MAX_HOLD_SECONDS}")
        hold = int(asked["hold"])
    if "for" in asked and not CLAIMANT.fullmatch(claimant):
        raise problems.unprocessable("for must be 1 to 128 visible ASCII characters")
    if n > MAX_NUMBERS and (hold or claimant):
        raise problems.unprocessable(f"a claim with hold or for takes at most {MAX_NUMBERS}")
    return n, hold, claimant
