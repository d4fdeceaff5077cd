"""The description of the HTTP interface: OpenAPI 3.1, from the list of operations and the types that they use."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pythonricing.settings import MAX_COUNT
from pythonricing.web.claim import KEY, Claim, Claimed
from pythonricing.web.counters import MAX_PAGE, PAGE, CounterChange, CounterList, CounterView
from pythonricing.web.probes import Health
from pythonricing.web.problems import MEDIA_TYPE, Halted, ProblemDetails
from pythonricing.web.receive import MAX_BODY, MAX_QUERY, NAME

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


TYPES = (Claimed, CounterView, CounterList, CounterChange, Health, ProblemDetails, Halted)

#: What each answer means, by its status: and the type of its body, a type of ours, a media type, or None for none.
ANSWERS: dict[str, tuple[int, str, type | str | None]] = {
    "claimed": (200, "Admitted: the claim owns the numbers `request_count - n + 1` to `request_count`", Claimed),
    "counter": (200, "The counter", CounterView),
    "counters": (200, "The counters", CounterList),
    "created": (201, "The counter, which is new", CounterView),
    "health": (200, "All is well", Health),
    "deleted": (204, "Forgotten", None),
    "empty": (200, "Nothing is counted", None),
    "metrics": (200, "Metrics in Prometheus' text format", "text/plain"),
    "page": (200, "A page that shows the counters as they move", "text/html"),
    "events": (200, "The counters, once a second, as Server-Sent Events", "text/event-stream"),
    "openapi": (200, "This document", "application/json"),
    "400": (400, "The request is not complete, or not HTTP", ProblemDetails),
    "401": (401, "The admin token is missing or wrong", ProblemDetails),
    "403": (403, "No admin token is configured, or a page of another site claims", ProblemDetails),
    "404": (404, "There is no such counter", ProblemDetails),
    "408": (408, "The body was not complete in time", ProblemDetails),
    "413": (413, f"The body has more than {MAX_BODY} bytes", ProblemDetails),
    "414": (414, f"The query string has more than {MAX_QUERY} bytes", ProblemDetails),
    "422": (422, "A value that is not allowed", ProblemDetails),
    "429": (429, "Refused: the counter is halted for this claim", Halted),
    "500": (500, "A bug, which has been logged", ProblemDetails),
    "503": (
        503,
        "The store didn't answer in time or has lost data, or this process is stopping; never an admission",
        ProblemDetails,
    ),
}
HEADERS = {"created": "Location", "401": "WWW-Authenticate", "503": "Retry-After"}

NUMBER = {
    "name": "n",
    "in": "query",
    "description": "How many numbers to claim, all or nothing",
    "schema": {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_COUNT, "default": 1},
}
AFTER = {
    "name": "after",
    "in": "query",
    "description": "Only counters whose names come after this one",
    "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
}
LIMIT = {
    "name": "limit",
    "in": "query",
    "description": "How many counters, at most",
    "schema": {"type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key on the same counter gets the first answer again and counts nothing: an admission for "
    "24 hours, a refusal for a minute. Keys are not bound to a client, and who guesses one gets its numbers: make them "
    "random (a UUID), not an order's number",
    "schema": {"type": "string", "pattern": f"^{KEY.pattern.decode()}$"},
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
    parameters = (NUMBER, IDEMPOTENCY_KEY) if operation.endpoint is Claim else operation.parameters
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
    if header := HEADERS.get(name):
        answer["headers"] = {header: {"schema": {"type": "string"}, "required": True}}
    if isinstance(kind, str):
        answer["content"] = {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}}
    elif kind is not None:
        media_type = MEDIA_TYPE if issubclass(kind, ProblemDetails) else "application/json"
        answer["content"] = {media_type: {"schema": _schema(kind)}}
    return answer


def _schema(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
