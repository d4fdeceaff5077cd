"""`/livez` and `/readyz`: whether to restart this process, and whether to send it claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pythonricing.web.parts import Parts
from pythonricing.web.problems import stopping
from pythonricing.web.responses import JSON

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class Health(msgspec.Struct):
    """What the probes say when all is well.

    `master`: the server that the store's Sentinels name. `unreachable`: the masters of a store's shards that don't
    answer, or slots that no node serves, while the counters of other shards go on. `lost`: counters whose state
    the store has lost, as far as this worker knows, while the others are served.
    """

    status: str
    master: str | msgspec.UnsetType = msgspec.UNSET
    unreachable: list[str] | msgspec.UnsetType = msgspec.UNSET
    lost: list[str] | msgspec.UnsetType = msgspec.UNSET


async def live(request: Request) -> Response:
    """This process answers."""
    return JSON(Health("alive"))


async def ready(request: Request) -> Response:
    """Claims can be served: this process is not stopping, the store answers and has lost nothing."""
    parts = Parts.of(request)
    if parts.stopping:
        raise stopping()
    condition = await parts.counters.check()
    master = next((server.name for server in parts.store.servers() if server.elected), msgspec.UNSET)
    unreachable = msgspec.UNSET if condition.unreachable is None else condition.unreachable
    return JSON(Health("ready", master, unreachable, condition.lost or msgspec.UNSET))
