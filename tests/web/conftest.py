"""The service with an admin token, under either server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtests.rig.service import Service
from tests.web.support import ADMIN, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtests.rig.redis import RedisServer


@pytest.fixture(scope="module", params=["granian", "uvicorn"])
def api(
    request: pytest.FixtureRequest, valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    valkey.command("FLUSHALL")
    folder = tmp_path_factory.mktemp("api")
    running = Service(folder, valkey.url, command=request.param, admin_token=TOKEN, halt_cache=0)
    yield running.start("/readyz")
    running.stop()
    running.log()


@pytest.fixture
def name(api: Service, request: pytest.FixtureRequest) -> str:
    """A counter of this test's own with limit 10."""
    counter = request.node.name.split("[")[0][-60:]
    api.get(f"/counters/{counter}", "DELETE", **ADMIN)
    assert api.get(f"/counters/{counter}", "PUT", b'{"limit": 10}', **ADMIN)[0] == 201
    return counter


@pytest.fixture
def default(api: Service) -> None:
    """The counter `default` at 0 of 100."""
    assert api.get("/counters/default", "DELETE", **ADMIN)[0] == 204
