"""What a claim costs between the server's call and the store, without sockets: run `make benchmark` before and after.

No figure is asserted, because machines differ: the table that pytest-benchmark prints is the result.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from pythonricing.service import create_app
from pythonricing.settings import Settings

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CLIENTS, CLAIMS = 32, 50
HEADERS = [(b"host", b"127.0.0.1:8080"), (b"user-agent", b"wrk"), (b"accept", b"*/*")]


def scope() -> dict[str, Any]:
    """A request as a server describes it."""
    return {
        "type": "http",
        "method": "GET",
        "path": "/",
        "root_path": "",
        "query_string": b"",
        "headers": HEADERS,
    }


@pytest.mark.parametrize(
    ("limit", "halt_cache", "status"),
    [(10**12, 0.1, 200), (0, 60.0, 429), (0, 0.0, 429)],
    ids=["admitted", "halted", "refused"],
)
def test_claims_in_memory(benchmark: BenchmarkFixture, limit: int, halt_cache: float, status: int) -> None:
    """32 clients, each with its next claim as soon as the last one is answered; the time is that of 1,600 claims."""
    settings = Settings(store="memory://", limit=limit, halt_cache=halt_cache, request_log="off", log_level="ERROR")
    app = create_app(settings)
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def client() -> None:
        for _ in range(CLAIMS):
            await app(scope(), receive, send)

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        benchmark.pedantic(lambda: runner.run(clients()), rounds=20, warmup_rounds=2)
        runner.run(lifespan.__aexit__(None, None, None))
    assert set(statuses) == {status}
