"""The description of the HTTP interface: OpenAPI 3.1, from the list of operations and the types that they use."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pythonricing.counting.model import CLAIMANT, MAX_HOLD_SECONDS, NAME
from pythonricing.counting.model import HOLD as HOLD_ID
from pythonricing.settings import MAX_COUNT
from pythonricing.web.claim import KEY, Claim, Claimed
from pythonricing.web.counters import MAX_PAGE, PAGE, CounterChange, CounterList, CounterView
from pythonricing.web.holds import NUMBERS as NUMBER_RUN
from pythonricing.web.holds import GivenBack, Hold
from pythonricing.web.probes import Health
from pythonricing.web.problems import MEDIA_TYPE, Halted, ProblemDetails, Resolved
from pythonricing.web.receive import MAX_BODY, MAX_QUERY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.requests import Request
    from starlette.responses import Response


class Operation(NamedTuple):
    """What one method does at one path, and how it is described. `answers` are keys of ANSWERS."""

    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]] | type[Claim]
    id: str
    summary: str
    answers: tuple[str, ...]
    body: type | None = None
    parameters: tuple[dict[str, Any], ...] = ()
    admin: bool = False
    #: It exists only where the live page is on.
    watch: bool = False


TYPES = (
    *(Claimed, CounterView, CounterList, CounterChange, Hold, GivenBack, Health),
    *(ProblemDetails, Halted, Resolved),
)

#: Whether a request that gets an error may be sent again as it is.
AGAIN, NOT_AGAIN = "May be tried again", "Tried again, it gets the same answer until somebody changes something"
WITH_KEY = (
    f"{AGAIN} after `Retry-After` and a random while, with the same `Idempotency-Key`: it then counts once, whatever "
    "became of this one. Without a key it may have been counted for nobody"
)

#: What each answer means, by its status: and the type of its body, a type of ours, a media type, or None for none.
ANSWERS: dict[str, tuple[int, str, type | str | None]] = {
    "claimed": (
        200,
        "Admitted: the claim owns the numbers `request_count - n + 1` to `request_count`, or those of `numbers`",
        Claimed,
    ),
    "counter": (200, "The counter", CounterView),
    "counters": (200, "The counters", CounterList),
    "created": (201, "The counter, which is new", CounterView),
    "resolved": (200, "What became of the hold; the same again is answered with the same for 24 hours", Hold),
    "given-back": (200, "Given back, as far as they had not been before", GivenBack),
    "health": (200, "All is well", Health),
    "deleted": (204, "Forgotten", None),
    "empty": (200, "Nothing is counted", None),
    "metrics": (200, "Metrics in Prometheus' text format", "text/plain"),
    "page": (200, "A page that shows the counters as they move", "text/html"),
    "events": (200, "The counters, once a second, as Server-Sent Events", "text/event-stream"),
    "openapi": (200, "This document", "application/json"),
    "400": (400, f"The request is not complete, or not HTTP; nothing is counted. {AGAIN}", ProblemDetails),
    "401": (401, f"The admin token is missing or wrong. {NOT_AGAIN}", ProblemDetails),
    "403": (403, f"A page of another site claims, or a prefetch; nothing is counted. {NOT_AGAIN}", ProblemDetails),
    "403-admin": (403, f"No admin token is configured. {NOT_AGAIN}", ProblemDetails),
    "404": (404, f"There is no such counter. {NOT_AGAIN}", ProblemDetails),
    "403-hold": (403, f"A page of another site asks; nothing is changed. {NOT_AGAIN}", ProblemDetails),
    "404-hold": (
        404,
        "There is no such counter; or it knows of no such hold, or no longer: it was made for another counter, "
        f"resolved more than 24 hours ago, or forgotten with a reset or a loss. {NOT_AGAIN}",
        ProblemDetails,
    ),
    "404-number": (404, f"There is no such counter, or numbers were never given. {NOT_AGAIN}", ProblemDetails),
    "409": (409, f"The hold was resolved before, in another way. {NOT_AGAIN}", Resolved),
    "410": (410, f"The hold has expired, and its numbers went back. {NOT_AGAIN}", ProblemDetails),
    "408": (408, f"The body was not complete in time; nothing is counted. {AGAIN}", ProblemDetails),
    "413": (413, f"The body has more than {MAX_BODY} bytes. {NOT_AGAIN}", ProblemDetails),
    "414": (414, f"The query string has more than {MAX_QUERY} bytes. {NOT_AGAIN}", ProblemDetails),
    "422": (422, f"A value that is not allowed; nothing is counted or changed. {NOT_AGAIN}", ProblemDetails),
    "429": (
        429,
        "Refused: no room for this claim, perhaps for a smaller one, or its claimant would have too many "
        f"(`violated-policies`). {NOT_AGAIN}, or, where `Retry-After` says when, until numbers may come back: the "
        "counter renews, or a hold may expire",
        Halted,
    ),
    "500": (500, f"A bug, which has been logged. {AGAIN}, a claim with the same `Idempotency-Key`", ProblemDetails),
    "503": (
        503,
        "Never an admission: the store didn't answer in time or has lost data, or this process is stopping. "
        f"{WITH_KEY}",
        ProblemDetails,
    ),
    "503-read": (503, f"The store didn't answer in time, or has lost data. {AGAIN}", ProblemDetails),
    "503-change": (
        503,
        "The store didn't answer in time, or it turned out that it has lost data, or this process is stopping. It may "
        "have taken effect before, but will not any more from now on, as far as the store's clock can be trusted: read "
        f"the counter. {AGAIN}",
        ProblemDetails,
    ),
    "503-ready": (503, f"Claims can't be served by this process now. {AGAIN}", ProblemDetails),
    "503-watch": (503, f"This process is stopping, or too many watch it. {AGAIN}", ProblemDetails),
}
RATE_LIMIT = ("RateLimit-Policy", "RateLimit")
HEADERS = {
    "401": ("WWW-Authenticate",),
    **dict.fromkeys(("counter", "429"), RATE_LIMIT),
    "created": ("Location", *RATE_LIMIT),
    **dict.fromkeys((name for name in ANSWERS if name.startswith("503")), ("Retry-After",)),
}
#: Headers that an answer may have.
MAY_HAVE = {"429": ("Retry-After",)}

NUMBER = {
    "name": "n",
    "in": "query",
    "description": "How many numbers to claim, all or nothing",
    "schema": {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_COUNT, "default": 1},
}
AFTER = {
    "name": "after",
    "in": "query",
    "description": "Only counters whose names come after this one; empty: all",
    "schema": {"type": "string", "pattern": f"^({NAME.pattern})?$"},
}
LIMIT = {
    "name": "limit",
    "in": "query",
    "description": "How many counters, at most",
    "schema": {"type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE},
}
HOLD_SECONDS = {
    "name": "hold",
    "in": "query",
    "description": "The numbers go back after so many seconds, or up to one later, unless the hold is confirmed",
    "schema": {"type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_HOLD_SECONDS},
}
FOR = {
    "name": "for",
    "in": "query",
    "description": "Who claims, on a counter with a limit for each, and only there. The service believes it",
    "schema": {"type": "string", "pattern": f"^{CLAIMANT.pattern}$"},
}
HOLD = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The id of the hold, as the claim's answer has it",
    "schema": {"type": "string", "pattern": f"^{HOLD_ID.pattern}$"},
}
CONFIRMED = {
    "name": "n",
    "in": "query",
    "description": "How many numbers to confirm, the first ones; the others go back. Without it, all of them",
    "schema": {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_COUNT},
}
NUMBERS = {
    "name": "numbers",
    "in": "path",
    "required": True,
    "description": "The first and the last number, such as 7-9 or 7-7, not backwards, at most 1,024 of them",
    "schema": {"type": "string", "pattern": f"^{NUMBER_RUN.pattern}$"},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key on the same counter gets the first answer again and counts nothing: an admission for "
    "24 hours, a refusal for a minute. While the first request is in progress, a second one with its key waits "
    "and gets the first one's answer. With another `n`, another `for`, or with `hold` and without, it is a 422. "
    "In quotes or without, it is the same key. Keys are "
    "not bound to a client, and who guesses one gets its numbers: make them random (a UUID), not an order's number",
    "schema": {"type": "string", "pattern": f"^(?:{KEY.pattern.decode()})$"},
}
COUNTER = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name of the counter",
    "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The OpenAPI document of these operations."""
    _, components = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    for component in components.values():
        for schema in component["properties"].values():
            if schema.get("type") == "integer":  # counts don't fit into the 32 bits that some generators take
                schema["format"] = "int64"
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = paths.setdefault(operation.path, {"parameters": [COUNTER]} if "{name}" in operation.path else {})
        path[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pythonricing",
            "version": version("pythonricing"),
            "summary": "Counts requests and admits exactly N of them",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The service that tells this document"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {name: _answer(name) for name in ANSWERS},
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer", "description": "The admin token"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": {
            str(ANSWERS[answer][0]): {"$ref": f"#/components/responses/{answer}"}
            for answer in sorted((*operation.answers, "414", "500"), key=lambda answer: ANSWERS[answer][0])
        },
    }
    parameters = (NUMBER, HOLD_SECONDS, FOR, IDEMPOTENCY_KEY) if operation.endpoint is Claim else operation.parameters
    if parameters:
        described["parameters"] = list(parameters)
    if operation.body is not None:
        content = {"application/json": {"schema": _schema(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    described["security"] = [{"admin": []}] if operation.admin else []
    return described


def _answer(name: str) -> dict[str, Any]:
    _, description, kind = ANSWERS[name]
    answer: dict[str, Any] = {"description": description}
    headers = dict.fromkeys(HEADERS.get(name, ()), True) | dict.fromkeys(MAY_HAVE.get(name, ()), False)
    if headers:
        answer["headers"] = {
            header: {"schema": {"type": "string"}, "required": required} for header, required in headers.items()
        }
    if isinstance(kind, str):
        answer["content"] = {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}}
    elif kind is not None:
        media_type = MEDIA_TYPE if issubclass(kind, ProblemDetails) else "application/json"
        answer["content"] = {media_type: {"schema": _schema(kind)}}
    return answer


def _schema(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
