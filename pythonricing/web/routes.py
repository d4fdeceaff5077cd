"""Every route of the service, once: the application, its short cut and its OpenAPI document are made from this list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from pythonricing.web import counters, holds, metrics, probes, watch
from pythonricing.web.claim import Claim
from pythonricing.web.counters import CounterChange
from pythonricing.web.openapi import AFTER, CONFIRMED, HOLD, LIMIT, NUMBERS, Operation, document
from pythonricing.web.responses import NO_STORE, encode

if TYPE_CHECKING:
    from starlette.requests import Request


async def nothing(request: Request) -> Response:
    """`HEAD /` counts nothing, although `GET /` does."""
    return Response(headers=NO_STORE, media_type="application/json")


async def openapi(request: Request) -> Response:
    return Response(encode(document(request.app.operations)), media_type="application/json")


_BODY = ("400", "408", "413", "422")  # one that there may be, or none
_CLAIM = ("claimed", *_BODY, "403", "429", "503")
_ADMIN = ("401", "403-admin", *_BODY, "503-change")

OPERATIONS = (
    Operation("GET", "/", Claim, "claimDefault", "Claim numbers of the counter `default`", _CLAIM),
    Operation("POST", "/", Claim, "claimDefaultByPost", "Claim numbers of the counter `default`", _CLAIM),
    Operation("HEAD", "/", nothing, "headDefault", "Answer and count nothing", ("empty",)),
    Operation("POST", "/counters/{name}", Claim, "claim", "Claim numbers of a counter", (*_CLAIM, "404")),
    Operation(
        *("GET", "/counters", counters.list_, "list", "List the counters by name"),
        ("counters", "401", "403-admin", *_BODY, "503-read"),
        parameters=(AFTER, LIMIT),
        admin=True,
    ),
    Operation(
        *("GET", "/counters/{name}", counters.read, "read", "Read a counter; never counts"),
        ("counter", "404", *_BODY, "503-read"),
    ),
    Operation(
        *("PUT", "/counters/{name}", counters.put, "put", "Create a counter, or change its limit and keep its count"),
        ("counter", "created", *_ADMIN),
        body=CounterChange,
        admin=True,
    ),
    Operation(
        *("DELETE", "/counters/{name}", counters.delete, "delete", "Forget a counter; `default` comes back at 0"),
        ("deleted", "404", *_ADMIN),
        admin=True,
    ),
    Operation(
        *("POST", "/counters/{name}/holds/{id}", holds.confirm, "confirm"),
        "Confirm a hold: its numbers, or the first n of them, are its claimant's for good",
        ("resolved", *_BODY, "403-hold", "404-hold", "409", "410", "503-change"),
        parameters=(HOLD, CONFIRMED),
    ),
    Operation(
        *("DELETE", "/counters/{name}/holds/{id}", holds.release, "release", "Give a hold's numbers back"),
        ("resolved", *_BODY, "403-hold", "404-hold", "409", "410", "503-change"),
        parameters=(HOLD,),
    ),
    Operation(
        *("DELETE", "/counters/{name}/numbers/{numbers}", holds.give_back, "giveBack"),
        "Give back numbers that somebody owns, each at most once, all or nothing",
        ("given-back", "404-number", *_ADMIN),
        parameters=(NUMBERS,),
        admin=True,
    ),
    Operation("GET", "/livez", probes.live, "live", "Whether this process answers", ("health",)),
    Operation("GET", "/readyz", probes.ready, "ready", "Whether claims can be served", ("health", "503-ready")),
    Operation("GET", "/metrics", metrics.scrape, "metrics", "What this server has counted", ("metrics",)),
    Operation("GET", "/watch", watch.page, "watch", "Watch the counters", ("page", "404"), watch=True),
    Operation(
        *("GET", "/watch/events", watch.events, "watchEvents", "The counters as they move"),
        ("events", "404", "503-watch"),
        watch=True,
    ),
    Operation("GET", "/openapi.json", openapi, "openapi", "This document", ("openapi",)),
)

#: `GET /` where it doesn't claim.
READ_DEFAULT = Operation(
    *("GET", "/", counters.read, "readDefault", "Read the counter `default`; never counts"),
    ("counter", *_BODY, "503-read"),
)


def operations(*, watch: bool, get_claims: bool) -> list[Operation]:
    """Those that there are with these settings."""
    return [
        READ_DEFAULT if operation.id == "claimDefault" and not get_claims else operation
        for operation in OPERATIONS
        if watch or not operation.watch
    ]
