"""`/counters`: a counter is read, and listed and changed by whoever has the admin token."""

from __future__ import annotations

import hmac
import re
from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta
from starlette.responses import Response

from pythonricing.counting.model import DEFAULT, NAME, NoSuchCounter
from pythonricing.counting.windows import ZONE
from pythonricing.settings import MAX_COUNT, Limit
from pythonricing.web import ratelimit
from pythonricing.web.parts import Parts
from pythonricing.web.problems import Problem, unprocessable
from pythonricing.web.receive import check_bare, values
from pythonricing.web.responses import JSON, NO_STORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from pythonricing.counting.model import Counter


#: Counters in one answer, unless it is asked for fewer; and at most.
PAGE, MAX_PAGE = 100, 1000
LIMIT = re.compile(r"[0-9]{1,4}")


class CounterView(msgspec.Struct):
    """A counter as it is read."""

    name: str
    count: int
    limit: int
    remaining: int
    halted: bool
    leased: Annotated[
        int,
        Meta(
            description="How many of `count` are out on leases of workers: so many, at most, nobody has got yet, and "
            "they may come back"
        ),
    ]
    #: The largest claim, if it has a bound.
    most: int | msgspec.UnsetType = msgspec.UNSET
    held: (
        Annotated[int, Meta(description="How many of `count` are on holds, if any: they may go back")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    given_back: (
        Annotated[int, Meta(description="How many numbers went back, if any: so many may be given above `limit`")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    each: (
        Annotated[int, Meta(description="How many one claimant may have, where there is a limit for each")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    every: Annotated[str, Meta(description="How it renews, where it does")] | msgspec.UnsetType = msgspec.UNSET
    zone: Annotated[str, Meta(description="In which time zone it renews, if not in UTC")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    renews: (
        Annotated[datetime, Meta(tz=True, description="When its count starts over, by the store's clock")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    #: In a list only: its store has lost what it had counted.
    lost: bool | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, counter: Counter) -> CounterView:
        remaining = max(0, counter.limit - counter.count)
        unset = msgspec.UNSET
        return cls(
            *(counter.name, counter.count, counter.limit, remaining, remaining == 0, counter.leased),
            *(counter.most or unset, counter.held or unset, counter.given_back or unset, counter.each or unset),
            *(counter.every or unset, counter.zone or unset),
            datetime.fromtimestamp(counter.ends // 1_000_000, UTC) if counter.ends else unset,
            counter.lost or unset,
        )


class CounterList(msgspec.Struct):
    """Counters by name; there may be more after `after`, if that is given."""

    counters: list[CounterView]
    after: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, counters: Sequence[Counter], limit: int) -> CounterList:
        """A page of at most `limit` counters."""
        after = counters[-1].name if len(counters) == limit else msgspec.UNSET
        return cls([CounterView.of(counter) for counter in counters], after)


class CounterChange(msgspec.Struct, forbid_unknown_fields=True):
    """What PUT takes: the limit and the rules. What is left out, the counter doesn't have, or no longer."""

    limit: Limit
    most: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="The largest claim")] | msgspec.UnsetType = msgspec.UNSET
    each: (
        Annotated[int, Meta(ge=1, le=MAX_COUNT, description="How many one claimant may have; at most `limit`")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    every: (
        Annotated[
            str,
            Meta(
                description="How it renews: each day, week or month of `zone`, or after seconds to days, at most 366d",
                extra_json_schema={"pattern": "^(?:day|week|month|[1-9][0-9]{0,8}[smhd])$", "examples": ["day", "15m"]},
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    zone: (
        Annotated[
            str,
            Meta(
                description="A time zone of the IANA, for days, weeks and months; without it UTC",
                extra_json_schema={"pattern": f"^{ZONE.pattern}$", "examples": ["Europe/Berlin"]},
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


async def list_(request: Request) -> Response:
    parts = Parts.of(request)
    authorize(request, parts.admin_token)
    await check_bare(request, parts.bodies, "which counters are listed is in the query", query=True)
    asked = values(request.scope["query_string"], "after", "limit")
    after, limit = asked.get("after", ""), asked.get("limit", str(PAGE))
    if after and not NAME.fullmatch(after):
        raise unprocessable("after must be the name of a counter")
    if not LIMIT.fullmatch(limit) or not 1 <= int(limit) <= MAX_PAGE:
        raise unprocessable(f"limit must be a whole number from 1 to {MAX_PAGE}")
    return JSON(CounterList.of(await parts.counters.browse(int(limit), after), int(limit)))


async def read(request: Request) -> Response:
    parts = Parts.of(request)
    name = existing(request)
    await check_bare(request, parts.bodies, "a counter is read as it is")
    return _shown(await parts.counters.read(name))


async def put(request: Request) -> Response:
    parts = Parts.of(request)
    authorize(request, parts.admin_token)
    name: str = request.path_params["name"]
    if not NAME.fullmatch(name):
        raise unprocessable("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -, and not . or ..")
    if request.scope["query_string"]:
        raise unprocessable("a counter's limit and rules are in the body: there is no query string here")
    body = await parts.bodies.read(request.scope, request.receive)
    try:
        change = msgspec.json.decode(body, type=CounterChange)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unprocessable(f'the body must be like {{"limit": 500}}: {error}') from None
    if change.every == "":
        raise unprocessable("every is left out where a counter doesn't renew")
    if change.zone == "":
        raise unprocessable("zone is left out for UTC")
    counter, created = await parts.counters.put(
        name, change.limit, change.most or 0, change.each or 0, change.every or "", change.zone or ""
    )
    answer = _shown(counter, 201 if created else 200)
    if created:
        answer.headers["location"] = request.url.path
    return answer


async def delete(request: Request) -> Response:
    parts = Parts.of(request)
    authorize(request, parts.admin_token)
    name = existing(request)
    await check_bare(request, parts.bodies, "a counter is forgotten whole")
    await parts.counters.delete(name)
    return Response(status_code=204, headers=NO_STORE)


def _shown(counter: Counter, status: int = 200) -> Response:
    view = CounterView.of(counter)
    resets = max(1, ceil((counter.ends - counter.now) / 1e6)) if counter.ends else 0
    return JSON(view, status, ratelimit.fields(view.limit, view.remaining, counter.each, resets))


def existing(request: Request) -> str:
    """The counter's name, which `/` doesn't say. Raises NoSuchCounter for what can't be one."""
    name: str = request.path_params.get("name", DEFAULT)
    if not NAME.fullmatch(name):
        raise NoSuchCounter(name)
    return name


def authorize(request: Request, admin_token: str | None) -> None:
    """Raises Problem unless the request brings the admin token."""
    if admin_token is None:
        raise Problem(403, "Forbidden", "no admin token is configured: counters can't be changed or listed over HTTP")
    given = request.headers.getlist("authorization")
    scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode("latin-1"), admin_token.encode()):
        raise Problem(
            401,
            "Unauthorized",
            "changing and listing counters needs the admin token as a bearer token",
            headers={"www-authenticate": "Bearer"},
        )
