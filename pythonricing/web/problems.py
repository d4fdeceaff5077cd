"""What is wrong, as RFC 9457 has it: the one place where what endpoints and the heart raise becomes an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pythonricing.counting.model import (
    DEFAULT,
    BadRules,
    ClaimantMissing,
    ClaimantUnwanted,
    HoldExpired,
    HoldResolved,
    KeyReused,
    NoSuchCounter,
    NoSuchHold,
    NoSuchNumber,
    Overloaded,
    StateLost,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    TooMany,
)
from pythonricing.web.ratelimit import EACH, LIMIT
from pythonricing.web.responses import NO_STORE, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from pythonricing.counting.model import Resolution

MEDIA_TYPE = "application/problem+json"

#: The type of a refusal, the one problem that others have too (draft-ietf-httpapi-ratelimit-headers-11, section 5.1).
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
#: How the other types end, which begin with `urn:pythonricing:`. Each has its place in docs/problems.md.
Kind = Literal[
    "no-such-counter",
    "no-such-hold",
    "no-such-number",
    "hold-resolved",
    "hold-expired",
    "unprocessable",
    "store-unavailable",
    "state-lost",
    "stopping",
    "too-many-watchers",
]
Number = Annotated[int, msgspec.Meta(extra_json_schema={"format": "int64"})]
#: The first and the last number of a run.
Run = Annotated[tuple[Number, ...], msgspec.Meta(min_length=2, max_length=2)]


class ProblemDetails(msgspec.Struct):
    """What is wrong, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str


class Halted(ProblemDetails, rename={"violated_policies": "violated-policies"}):
    """The claim finds no room in the counter, or its claimant has too many; `each` is how many one may have."""

    request_count: int
    limit: int
    violated_policies: list[str]
    each: int | msgspec.UnsetType = msgspec.UNSET


class Resolved(ProblemDetails):
    """The hold was confirmed or released before; `numbers` are the runs that are confirmed."""

    outcome: Literal["confirmed", "released"]
    numbers: tuple[Run, ...]


class Problem(Exception):
    """An answer that says what is wrong. Without a `kind` the title says it all, which is that of the status."""

    def __init__(
        self, status: int, title: str, detail: str, kind: Kind | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.details: ProblemDetails = ProblemDetails(
            f"urn:pythonricing:{kind}" if kind else "about:blank", title, status, detail
        )
        self.headers = {**NO_STORE, **(headers or {})}


def unprocessable(detail: str) -> Problem:
    return Problem(422, "Unprocessable", detail, "unprocessable")


def halted(name: str, size: int, request_count: int, limit: int, each: int = 0) -> Halted:
    """What a refused claim is told; `each` is how many one claimant may have, if it is that which refused it."""
    if each:
        detail = f"one claimant may have {each} of counter {name} at once: no room for {size} more"
    elif size > limit:
        detail = f"counter {name} holds {limit} in all: a claim of {size} can't be admitted however few are taken"
    else:
        detail = f"{request_count} of {limit} are taken on counter {name}: no room for {size} more"
    title = "Request cannot be satisfied as assigned quota has been exceeded"
    violated = [EACH if each else LIMIT]
    return Halted(QUOTA_EXCEEDED, title, 429, detail, request_count, limit, violated, each or msgspec.UNSET)


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
            return unprocessable(
                "the Idempotency-Key was used before for a claim with another n, another for, or with hold and without"
            )
        case TooMany(args=(most,)):
            return unprocessable(f"a claim on counter {name} takes at most {most}")
        case ClaimantMissing():
            return unprocessable(f"counter {name} has a limit for each claimant: for must say who claims")
        case ClaimantUnwanted():
            return unprocessable(f"counter {name} has no limit for each claimant: for can't be given")
        case BadRules(args=(why,)):
            return unprocessable(why)
        case NoSuchHold():
            return Problem(404, "No such hold", f"counter {name} knows of no such hold", "no-such-hold")
        case NoSuchNumber():
            detail = f"some of these numbers of counter {name} were never given to anybody, so nothing was given back"
            return Problem(404, "No such number", detail, "no-such-number")
        case HoldExpired():
            return Problem(410, "Hold expired", str(error), "hold-expired")
        case HoldResolved(args=(resolution,)):
            return _resolved(str(error), resolution)
        case StateLost():
            return Problem(503, "State lost", str(error), "state-lost", {"retry-after": "60"})
        case Overloaded() | StoreUnavailable() | StoreRejected():
            return Problem(503, "Store unavailable", str(error), "store-unavailable", {"retry-after": "1"})
        case HTTPException(status_code=404):
            return Problem(404, "Not found", "there is nothing at this path")
        case _:
            logger.opt(exception=error).error("a request on counter {} failed", name)
            return Problem(500, "Internal server error", "something went wrong here; it has been logged")


def _resolved(detail: str, resolution: Resolution) -> Problem:
    problem = Problem(409, "Hold resolved", detail, "hold-resolved")
    told = problem.details
    outcome: Literal["confirmed", "released"] = "confirmed" if resolution.outcome == "confirmed" else "released"
    problem.details = Resolved(told.type, told.title, told.status, told.detail, outcome, resolution.numbers)
    return problem


async def handle(request: Request, error: Exception) -> Response:
    """`answer` as Starlette calls it."""
    return answer(error, request.path_params.get("name", DEFAULT))


#: Starlette's exception handlers: what its router, the endpoints and the heart raise, and what nobody expected.
HANDLERS = dict.fromkeys(
    (
        *(HTTPException, Problem, StoreError, KeyReused, TooMany, ClaimantMissing, ClaimantUnwanted),
        *(BadRules, NoSuchHold, HoldResolved, NoSuchNumber, Exception),
    ),
    handle,
)
