"""One `INCR` over redis-py for each request, without a framework."""

from loadtests.peers.asgi import application, store


async def claim() -> int:
    return int(await store.incr("count"))


app = application(claim)
