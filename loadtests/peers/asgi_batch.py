"""A naive batcher: one `INCRBY` for all claims that came while the one before was on its way.

No receipts, no deadlines, no log, nothing about losses: beside it, the service shows what its guarantees cost.
"""

from __future__ import annotations

import asyncio

from loadtests.peers.asgi import application, store

waiting: list[asyncio.Future[int]] = []
sender: asyncio.Task[None] | None = None


async def send() -> None:
    global sender, waiting
    while waiting:
        batch, waiting = waiting, []
        last = int(await store.incrby("count", len(batch)))
        for number, claim in enumerate(batch, last - len(batch) + 1):
            if not claim.done():
                claim.set_result(number)
    sender = None


async def claim() -> int:
    global sender
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting.append(future)
    if sender is None:
        sender = asyncio.create_task(send())
    return await future


app = application(claim)
