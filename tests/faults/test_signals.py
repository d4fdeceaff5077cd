"""A signal reaches both the service's readiness and the server's own handler, whenever it comes."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
import uvloop

from pythonricing.signals import on_terminate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("while_running", [True, False], ids=["while the loop runs", "between two runs"])
def test_a_signal_reaches_the_service_and_the_server(
    new_loop: Callable[[], asyncio.AbstractEventLoop], number: signal.Signals, while_running: bool
) -> None:
    loop = new_loop()
    told: list[str] = []
    heard = asyncio.Event()

    def hear() -> None:
        told.append("server")
        heard.set()

    # As Granian does: its handlers first, then the application's start in a run of its own, then the service's.
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, hear)

    async def start() -> None:
        on_terminate(lambda: told.append("service"))
        if while_running:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.05)

    async def serve() -> None:
        await asyncio.wait_for(heard.wait(), 30)

    loop.run_until_complete(start())
    if not while_running:
        os.kill(os.getpid(), number)
    loop.run_until_complete(serve())
    loop.close()
    assert told[0] == "service"


def test_a_signal_reaches_a_server_that_has_no_event_loop_handler() -> None:
    """As uvicorn does."""
    told: list[str] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append("server"))

    async def run() -> None:
        on_terminate(lambda: told.append("service"))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert told == ["service", "server"]
