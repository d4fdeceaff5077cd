"""What becomes of numbers: a hold is confirmed or given back, and an operator gives back what somebody owned."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from pythonricing.counting.model import MAX_NUMBERS, TooMany
from pythonricing.settings import MAX_COUNT
from pythonricing.web.counters import authorize, existing
from pythonricing.web.parts import Parts
from pythonricing.web.problems import Run, unprocessable
from pythonricing.web.receive import check_bare, check_origin, size, values
from pythonricing.web.responses import JSON

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pythonricing.counting.model import Resolution

NUMBERS = re.compile(r"([1-9][0-9]{0,15})-([1-9][0-9]{0,15})")


class Hold(msgspec.Struct):
    """What became of a hold; `held` is how many numbers it was for, and `numbers` are the runs that are confirmed."""

    outcome: Literal["confirmed", "released"]
    held: int
    numbers: tuple[Run, ...]


class GivenBack(msgspec.Struct):
    """How many of the numbers were given back just now; the others had been before."""

    given_back: int


async def confirm(request: Request) -> Response:
    name, id = await _hold(request, "how many numbers are confirmed is n in the query", query=True)
    n = values(request.scope["query_string"], "n").get("n")
    try:
        resolution, _ = await Parts.of(request).counters.confirm(name, id, None if n is None else size(n))
    except TooMany as error:
        raise unprocessable(f"n is more than the {error.args[0]} numbers of the hold") from None
    return _shown(resolution)


async def release(request: Request) -> Response:
    name, id = await _hold(request, "a hold is given back whole")
    resolution, _ = await Parts.of(request).counters.release(name, id)
    return _shown(resolution)


async def give_back(request: Request) -> Response:
    parts = Parts.of(request)
    authorize(request, parts.admin_token)
    name = existing(request)
    await check_bare(request, parts.bodies, "which numbers go back is in the path")
    found = NUMBERS.fullmatch(request.path_params["numbers"])
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MAX_COUNT:
        raise unprocessable("numbers are the first and the last one, such as 7-9 or 7-7, from 1 and not backwards")
    run = int(found[1]), int(found[2])
    if run[1] - run[0] >= MAX_NUMBERS:
        raise unprocessable(f"at most {MAX_NUMBERS} numbers can be given back at once")
    given, _ = await parts.counters.give_back(name, [run])
    return JSON(GivenBack(given))


async def _hold(request: Request, why: str, *, query: bool = False) -> tuple[str, str]:
    """The counter's name and the hold's id; see check_bare."""
    parts = Parts.of(request)
    if request.headers.get("sec-fetch-site", "").strip() == "cross-site":
        said = "confirm holds or give them back here; nothing was changed"
        check_origin(request.scope, parts.allowed_origins, said)
    name = existing(request)
    await check_bare(request, parts.bodies, why, query=query)
    return name, request.path_params["id"]


def _shown(resolution: Resolution) -> Response:
    return JSON(
        Hold("confirmed" if resolution.outcome == "confirmed" else "released", resolution.size, resolution.numbers)
    )
