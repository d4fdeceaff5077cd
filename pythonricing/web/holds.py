"""What becomes of numbers: a hold is confirmed or given back, and an operator gives back what somebody owned."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from pythonricing.counting.counters import HOLD_BYTES
from pythonricing.counting.model import MAX_NUMBERS, NoSuchHold, TooMany
from pythonricing.settings import MAX_COUNT
from pythonricing.web.counters import authorize, existing
from pythonricing.web.parts import Parts
from pythonricing.web.problems import Run, unprocessable
from pythonricing.web.receive import check_origin, size, values
from pythonricing.web.responses import JSON

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pythonricing.counting.model import Resolution

#: So many bytes as base64 without padding.
HOLD = re.compile(rf"[A-Za-z0-9_-]{{{-(-HOLD_BYTES * 8 // 6)}}}")
NUMBERS = re.compile(r"([0-9]{1,16})-([0-9]{1,16})")


class Hold(msgspec.Struct):
    """What became of a hold; `held` is how many numbers it was for, and `numbers` are the runs that are confirmed."""

    outcome: Literal["confirmed", "released"]
    held: int
    numbers: tuple[Run, ...]


class GivenBack(msgspec.Struct):
    """How many of the numbers were given back just now; the others had been before."""

    given_back: int


async def confirm(request: Request) -> Response:
    name, id = await _hold(request)
    n = values(request.scope["query_string"], "n").get("n")
    try:
        resolution, _ = await Parts.of(request).counters.confirm(name, id, None if n is None else size(n))
    except TooMany as error:
        raise unprocessable(f"n is more than the {error.args[0]} numbers of the hold") from None
    return _shown(resolution)


async def release(request: Request) -> Response:
    name, id = await _hold(request)
    if request.scope["query_string"]:
        raise unprocessable("a hold is given back whole: there is no query string here")
    resolution, _ = await Parts.of(request).counters.release(name, id)
    return _shown(resolution)


async def give_back(request: Request) -> Response:
    parts = Parts.of(request)
    authorize(request, parts.admin_token)
    name = existing(request)
    if request.scope["query_string"]:
        raise unprocessable("which numbers go back is in the path: there is no query string here")
    found = NUMBERS.fullmatch(request.path_params["numbers"])
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MAX_COUNT:
        raise unprocessable("numbers are the first and the last one, such as 7-9 or 7-7, from 1 and not backwards")
    run = int(found[1]), int(found[2])
    if run[1] - run[0] >= MAX_NUMBERS:
        raise unprocessable(f"at most {MAX_NUMBERS} numbers can be given back at once")
    given, _ = await parts.counters.give_back(name, [run])
    return JSON(GivenBack(given))


async def _hold(request: Request) -> tuple[str, str]:
    """The counter's name and the hold's id. A body is a 422: what it said would be ignored."""
    parts = Parts.of(request)
    if request.headers.get("sec-fetch-site") == "cross-site":
        check_origin(request.scope, parts.allowed_origins)
    name, id = existing(request), request.path_params["id"]
    if await parts.bodies.read(request.scope, request.receive):
        raise unprocessable("there is no body here: how many numbers are confirmed is n in the query")
    if not HOLD.fullmatch(id):
        raise NoSuchHold
    return name, id


def _shown(resolution: Resolution) -> Response:
    return JSON(
        Hold("confirmed" if resolution.outcome == "confirmed" else "released", resolution.size, resolution.numbers)
    )
