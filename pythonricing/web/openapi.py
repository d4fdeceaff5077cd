"""The description of the HTTP interface: OpenAPI 3.1, its schemas generated from the types that the endpoints use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pythonricing.settings import MAX_COUNT
from pythonricing.web.api import (
    JSON,
    KEY,
    NAME,
    Claimed,
    CounterChange,
    CounterView,
    Endpoint,
    Halted,
    Health,
    ProblemDetails,
    respond,
)

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

TYPES = (Claimed, CounterView, CounterChange, Health, ProblemDetails, Halted)

#: What each answer means, and the type of its body: a type of ours, a media type, or None for an empty one.
ANSWERS: dict[str, tuple[str, type | str | None]] = {
    "claimed": ("Admitted: the claim owns the numbers `request_count - n + 1` to `request_count`", Claimed),
    "counter": ("The counter", CounterView),
    "created": ("The counter, which is new", CounterView),
    "health": ("All is well", Health),
    "deleted": ("Forgotten", None),
    "empty": ("Nothing is counted", None),
    "metrics": ("Metrics in Prometheus' text format", "text/plain"),
    "page": ("A page that shows the counters as they move", "text/html"),
    "events": ("The counters, once a second, as Server-Sent Events", "text/event-stream"),
    "openapi": ("This document", "application/json"),
    "400": ("The request is not complete, or not HTTP", ProblemDetails),
    "401": ("The admin token is missing or wrong", ProblemDetails),
    "403": ("No admin token is configured: nothing can be changed over HTTP", ProblemDetails),
    "404": ("There is no such counter", ProblemDetails),
    "413": ("The body has more than 4096 bytes", ProblemDetails),
    "422": ("A value that is not allowed", ProblemDetails),
    "429": ("Refused: the counter is halted for this claim", Halted),
    "500": ("A bug, which has been logged", ProblemDetails),
    "503": (
        "The store didn't answer in time or has lost data, or this process is stopping; never an admission",
        ProblemDetails,
    ),
}
HEADERS = {"401": "WWW-Authenticate", "503": "Retry-After"}

NUMBER = {
    "name": "n",
    "in": "query",
    "description": "How many numbers to claim, all or nothing",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_COUNT, "default": 1},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key on the same counter within 24 hours gets the first answer again and counts nothing",
    "schema": {"type": "string", "pattern": f"^{KEY.pattern.decode()}$"},
}
COUNTER = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name of the counter",
    "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
}


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    from importlib.metadata import version

    _, components = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    claim = {"200": "claimed", "400": "400", "413": "413", "422": "422", "429": "429", "503": "503"}
    admin = {"401": "401", "403": "403", "422": "422", "503": "503"}
    parameters = [NUMBER, IDEMPOTENCY_KEY]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pythonricing",
            "version": version("pythonricing"),
            "summary": "Counts requests and admits exactly N of them",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/": {
                "get": _operation("claimDefault", "Claim numbers of the counter `default`", claim, parameters),
                "post": _operation("claimDefaultByPost", "Claim numbers of the counter `default`", claim, parameters),
                "head": _operation("headDefault", "Answer and count nothing", {"200": "empty"}),
            },
            "/counters/{name}": {
                "parameters": [COUNTER],
                "post": _operation("claim", "Claim numbers of a counter", {**claim, "404": "404"}, parameters),
                "get": _operation(
                    "read", "Read a counter; never counts", {"200": "counter", "404": "404", "503": "503"}
                ),
                "put": _operation(
                    "put",
                    "Create a counter, or change its limit and keep its count",
                    {"200": "counter", "201": "created", "400": "400", "413": "413", **admin},
                    body=CounterChange,
                ),
                "delete": _operation(
                    "delete",
                    "Forget a counter; `default` comes back at 0",
                    {"204": "deleted", "404": "404", **admin},
                    admin=True,
                ),
            },
            "/livez": {"get": _operation("live", "Whether this process answers", {"200": "health"})},
            "/readyz": {
                "get": _operation("ready", "Whether claims can be served", {"200": "health", "503": "503"}),
            },
            "/metrics": {"get": _operation("metrics", "What this server has counted", {"200": "metrics"})},
            "/watch": {"get": _operation("watch", "Watch the counters", {"200": "page", "404": "404"})},
            "/watch/events": {
                "get": _operation(
                    "watchEvents", "The counters as they move", {"200": "events", "404": "404", "503": "503"}
                )
            },
            "/openapi.json": {"get": _operation("openapi", "This document", {"200": "openapi"})},
        },
        "components": {
            "schemas": components,
            "responses": {name: _answer(name) for name in ANSWERS},
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer", "description": "The admin token"}},
        },
    }


def _operation(
    identifier: str,
    summary: str,
    answers: dict[str, str],
    parameters: list[dict[str, Any]] | None = None,
    body: type | None = None,
    admin: bool = False,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": identifier,
        "summary": summary,
        "responses": {
            status: {"$ref": f"#/components/responses/{answer}"}
            for status, answer in sorted({**answers, "500": "500"}.items())
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(body)}}}
    if admin or body is not None:
        operation["security"] = [{"admin": []}]
    return operation


def _answer(name: str) -> dict[str, Any]:
    description, kind = ANSWERS[name]
    answer: dict[str, Any] = {"description": description}
    if header := HEADERS.get(name):
        answer["headers"] = {header: {"schema": {"type": "string"}, "required": True}}
    if isinstance(kind, str):
        answer["content"] = {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}}
    elif kind is not None:
        problem = issubclass(kind, ProblemDetails)
        answer["content"] = {f"application/{'problem+' if problem else ''}json": {"schema": _schema(kind)}}
    return answer


def _schema(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


class Document(Endpoint):
    """`GET /openapi.json`."""

    _body = b""

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._body = self._body or msgspec.json.encode(document())
        await respond(send, 200, self._body, JSON)
