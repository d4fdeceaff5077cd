"""The generator: one asyncio.Protocol, kept connections, latencies from when a request was meant to start.

Nothing is left out: what no connection is free for waits and is counted; what isn't answered in time is censored, that
is, counted with the time it has waited at least. So a pause of the server is seen by all requests that it kept waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from loadtests.open_model.timer import Timer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

#: Seconds between two looks for requests that are out of time.
LOOK = 0.02
#: Seconds before a connection that could not be opened is tried again.
AGAIN = 0.05


@dataclass
class Asked:
    """What became of each request: nanoseconds from its intended start to its end, its status (0: none) and body."""

    answers: list[tuple[int, int, bytes]] = field(default_factory=list)
    #: Nanoseconds by which the generator itself came late to each.
    late: list[int] = field(default_factory=list)
    #: Found no free connection when they were due; were never sent at all.
    waited: int = 0
    unsent: int = 0
    #: Censored: without an answer in time, or with a connection that was lost.
    timed_out: int = 0
    lost: int = 0
    #: Connections that were made again.
    reopened: int = 0


class Connection(asyncio.Protocol):
    """One kept connection, with at most one request on it."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._end = -1
        #: When the request on it was meant to start; None: it is free.
        self.intended: int | None = None
        self.expired = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._generator.free(self)

    def ask(self, intended: int, request: bytes) -> None:
        assert self._transport is not None
        self.intended = intended
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._end < 0:
            at = self._buffer.find(b"\r\n\r\n")
            if at < 0:
                return
            self._end = at + 4 + _length(self._buffer[:at])
        if len(self._buffer) < self._end or self.intended is None:
            return
        head, _, body = self._buffer[: self._end].partition(b"\r\n\r\n")
        intended, self.intended = self.intended, None
        self._buffer, self._end = self._buffer[self._end :], -1
        self._generator.answered(intended, int(head[9:12]), body)
        if self._generator.fresh or b"connection: close" in head.lower():
            self.close()
        else:
            self._generator.free(self)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.closed(self)


def _length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    return int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


class Generator:
    """Asks `request` at the moments of a schedule, over so many connections. `timeout` is in seconds.

    They are kept; if `fresh`, each request has one of its own, which is opened when the request is due.
    """

    def __init__(
        self,
        host: str,
        port: int,
        request: bytes,
        *,
        connections: int,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        fresh: bool = False,
    ) -> None:
        self._address = (host, port)
        self._request = request
        self._count = connections
        self._timeout = int(timeout * 1e9)
        self._tls = tls
        self.fresh = fresh
        self._free: list[Connection] = []
        self._all: set[Connection] = set()
        self._queue: deque[int] = deque()
        self._stopping = False
        self._openings: set[asyncio.Task[None]] = set()
        self.asked = Asked()

    async def run(self, moments: Sequence[int]) -> Asked:
        """Open the connections, and then ask. Raises OSError where not one can be opened."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._open() for _ in range(0 if self.fresh else self._count)))
        self._moments, self._next = moments, 0
        self._done = loop.create_future()
        self._begun = time.monotonic_ns() + 50_000_000
        self._timer = Timer(loop, self._due)
        try:
            self._due()
            self._look(loop)
            await self._done
        finally:
            self._stopping = True
            self._timer.close()
            for connection in list(self._all):
                connection.abort()
            for task in self._openings:
                task.cancel()
        return self.asked

    async def _open(self) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), *self._address, ssl=self._tls
        )
        self._all.add(connection)

    def _reopen(self) -> None:
        task = asyncio.ensure_future(self._until_open())
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)

    async def _until_open(self) -> None:
        while not self._stopping:
            try:
                await self._open()
            except OSError:
                await asyncio.sleep(AGAIN)
            else:
                self.asked.reopened += not self.fresh
                return

    def _due(self) -> None:
        """Take all requests whose time has come."""
        now, moments = time.monotonic_ns(), self._moments
        while self._next < len(moments) and (intended := self._begun + moments[self._next]) <= now:
            self._next += 1
            self.asked.late.append(now - intended)
            if self._free and not self._queue:
                self._free.pop().ask(intended, self._request)
            else:
                self._queue.append(intended)
                if self.fresh and len(self._all) + len(self._openings) < self._count:
                    self._reopen()
                else:
                    self.asked.waited += 1
        if self._next < len(moments):
            self._timer.at(self._begun + moments[self._next])
        else:
            self._end_if_done()

    def free(self, connection: Connection) -> None:
        if self._queue:
            connection.ask(self._queue.popleft(), self._request)
        elif self.fresh:
            connection.close()
        else:
            self._free.append(connection)

    def answered(self, intended: int, status: int, body: bytes) -> None:
        self.asked.answers.append((time.monotonic_ns() - intended, status, body))
        self._end_if_done()

    def closed(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if connection.intended is not None:
            if not connection.expired:
                self.asked.lost += 1
            self._censor(connection.intended)
            connection.intended = None
        if not self._stopping and (not self.fresh or len(self._queue) > len(self._openings)):
            self._reopen()
        self._end_if_done()

    def _censor(self, intended: int) -> None:
        """It took at least this long, and nobody knows how much longer: never less than the time that it had."""
        self.asked.answers.append((max(self._timeout, time.monotonic_ns() - intended), 0, b""))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._stopping:
            return
        oldest = time.monotonic_ns() - self._timeout
        while self._queue and self._queue[0] < oldest:
            self.asked.timed_out += 1
            self.asked.unsent += 1
            self._censor(self._queue.popleft())
        for connection in list(self._all):
            if connection.intended is not None and connection.intended < oldest and not connection.expired:
                connection.expired = True
                self.asked.timed_out += 1
                connection.abort()
        self._end_if_done()
        loop.call_later(LOOK, self._look, loop)

    def _end_if_done(self) -> None:
        if self._next == len(self._moments) == len(self.asked.answers) and not self._done.done():
            self._done.set_result(None)
