"""What is wrong, as RFC 9457 has it: the one place where what endpoints and the heart raise becomes an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pythonricing.counting.model import (
    DEFAULT,
    KeyReused,
    NoSuchCounter,
    Overloaded,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    TooMany,
)
from pythonricing.web.ratelimit import POLICY
from pythonricing.web.responses import NO_STORE, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

MEDIA_TYPE = "application/problem+json"

#: The type of a refusal, the one problem that others have too (draft-ietf-httpapi-ratelimit-headers-11, section 5.1).
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
#: How the other types end, which begin with `urn:pythonricing:`. Each has its place in docs/problems.md.
Kind = Literal["no-such-counter", "unprocessable", "store-unavailable", "state-lost", "stopping", "too-many-watchers"]


class ProblemDetails(msgspec.Struct):
    """What is wrong, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str


class Halted(ProblemDetails, rename={"violated_policies": "violated-policies"}):
    """The claim finds no room in the counter."""

    request_count: int
    limit: int
    violated_policies: list[str]


class Problem(Exception):
    """An answer that says what is wrong. Without a `kind` the title says it all, which is that of the status."""

    def __init__(
        self, status: int, title: str, detail: str, kind: Kind | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.details = ProblemDetails(f"urn:pythonricing:{kind}" if kind else "about:blank", title, status, detail)
        self.headers = {**NO_STORE, **(headers or {})}


def unprocessable(detail: str) -> Problem:
    return Problem(422, "Unprocessable", detail, "unprocessable")


def halted(name: str, size: int, request_count: int, limit: int) -> Halted:
    """What a refused claim is told."""
    if size > limit:
        detail = f"counter {name} holds {limit} in all: a claim of {size} can't be admitted however few are taken"
    else:
        detail = f"{request_count} of {limit} are taken on counter {name}: no room for {size} more"
    title = "Request cannot be satisfied as assigned quota has been exceeded"
    return Halted(QUOTA_EXCEEDED, title, 429, detail, request_count, limit, [POLICY])


def stopping() -> Problem:
    return Problem(503, "Stopping", "this process is stopping", "stopping", {"retry-after": "1"})


def answer(error: Exception, name: str) -> Response:
    """The answer to what was raised by a request on the counter `name`; what nobody expected is logged."""
    problem = _problem(error, name)
    return Response(encode(problem.details), problem.details.status, problem.headers, MEDIA_TYPE)


def _problem(error: Exception, name: str) -> Problem:
    match error:
        case Problem():
            return error
        case NoSuchCounter():
            return Problem(404, "No such counter", f"there is no counter {name}", "no-such-counter")
        case KeyReused():
            return unprocessable("the Idempotency-Key was used before for a claim with another n")
        case TooMany(args=(most,)):
            return unprocessable(f"a claim on counter {name} takes at most {most}")
        case StateLost():
            return Problem(
                503,
                "State lost",
                f"the store has lost what counter {name} had counted; an operator must set or reset it",
                "state-lost",
                {"retry-after": "60"},
            )
        case Overloaded() | StoreUnavailable() | StoreRejected():
            return Problem(503, "Store unavailable", str(error), "store-unavailable", {"retry-after": "1"})
        case HTTPException(status_code=404):
            return Problem(404, "Not found", "there is nothing at this path")
        case _:
            logger.opt(exception=error).error("a request on counter {} failed", name)
            return Problem(500, "Internal server error", "something went wrong here; it has been logged")


async def handle(request: Request, error: Exception) -> Response:
    """`answer` as Starlette calls it."""
    return answer(error, request.path_params.get("name", DEFAULT))


#: Starlette's exception handlers: what its router, the endpoints and the heart raise, and what nobody expected.
HANDLERS = dict.fromkeys((HTTPException, Problem, StoreError, KeyReused, TooMany, Exception), handle)
