"""What the heart raises is the same problem, whichever endpoint it went through."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import nullcontext, suppress
from typing import Any, get_args

import pytest

from pythonricing.counting.model import (
    KeyReused,
    NoSuchCounter,
    Overloaded,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from pythonricing.web import problems
from pythonricing.web.application import Application
from pythonricing.web.parts import Parts
from pythonricing.web.routes import OPERATIONS
from tests.docs_check import ROOT


class Failing:
    """Counters that fail."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def claim(self, *what: object) -> None:
        raise self._error

    async def read(self, name: str) -> None:
        raise self._error


def ask(error: Exception, method: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """A request that meets this error: the status, headers and problem that it is answered with."""
    counters: Any = Failing(error)
    nothing: Any = None
    parts = Parts(counters, nothing, nothing, nothing, nothing, None)
    application = Application(parts, OPERATIONS, lambda app: nullcontext())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def call() -> None:
        scope = {"type": "http", "method": method, "path": "/counters/seats", "query_string": b"", "headers": []}
        # Starlette answers what nobody expected and raises it again, for the server's log.
        with suppress(RuntimeError):
            await application(scope, receive, send)

    asyncio.run(call())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (NoSuchCounter("seats"), 404, "urn:pythonricing:no-such-counter", None),
        (KeyReused(), 422, "urn:pythonricing:unprocessable", None),
        (StateLost("default"), 503, "urn:pythonricing:state-lost", "60"),
        (StoreUnavailable("away"), 503, "urn:pythonricing:store-unavailable", "1"),
        (StoreRejected("full"), 503, "urn:pythonricing:store-unavailable", "1"),
        (Overloaded("busy"), 503, "urn:pythonricing:store-unavailable", "1"),
        (RuntimeError("a bug"), 500, "about:blank", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("method", ["POST", "GET"], ids=["claim", "read"])
def test_what_is_raised_becomes_a_problem(
    method: str, error: Exception, status: int, kind: str, retry: str | None
) -> None:
    got, headers, problem = ask(error, method)
    assert (got, problem["status"], problem["type"], headers.get("retry-after")) == (status, status, kind, retry)
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert set(problem) == {"type", "title", "status", "detail"}
    if isinstance(error, StoreError) and not isinstance(error, StateLost):
        assert ("seats" if isinstance(error, NoSuchCounter) else str(error)) in problem["detail"]


def test_every_type_of_problem_has_its_place_in_the_page() -> None:
    types = {problems.QUOTA_EXCEEDED, "about:blank", *(f"urn:pythonricing:{kind}" for kind in get_args(problems.Kind))}
    page = (ROOT / "docs/problems.md").read_text()
    assert sorted(re.findall(r"^## `(.*)`$", page, re.M)) == sorted(types)


def test_a_process_that_stops_says_when_to_come_again() -> None:
    assert problems.stopping().headers["retry-after"] == "1"
