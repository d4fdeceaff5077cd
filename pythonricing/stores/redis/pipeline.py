"""One connection to a Redis or Valkey that all callers share; hiredis packs the commands and reads the replies."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import hiredis

from pythonricing.counting.model import StoreRejected, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pythonricing.counting.model import StoreError


#: Error replies of a server that will do the work in a moment, or whose role has moved elsewhere.
PASSING_ERRORS = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS", "READONLY", "MASTERDOWN")
#: Those of them after which another connection may find a better server.
LEAVING_ERRORS = ("READONLY", "MASTERDOWN")


class Pipeline(asyncio.Protocol):
    """Commands go out at once, replies come back in order. Whoever connects gives it a transport.

    A command that stays unanswered for `timeout` seconds closes the connection, so that no reply can ever be taken
    for another command's. `lost` is called when the connection is gone.
    """

    def __init__(self, timeout: float, lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._reader = hiredis.Reader()
        self._timeout = timeout
        self._lost = lost
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self.closed = True  # until it is made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.closed = False

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply (hiredis.ReplyError for an error) or StoreUnavailable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the connection is closed"))
            return future
        self._waiting.append((future, self._loop.time()))
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._timeout, self._watch)
        return future

    #: Send a command whose effect must be as safe as the store is told to make it: here, the server's word is enough.
    confirmed = call

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a reply."""
        return not self._waiting

    def close(self) -> None:
        self.closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        lost = StoreUnavailable(f"the connection was lost: {error or 'closed by the server'}")
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(lost)
        self._waiting.clear()
        self._lost()

    def _watch(self) -> None:
        """Give up the connection if its oldest command waits too long; one timer, however many commands."""
        self._watchdog = None
        if not self._waiting:
            return
        left = self._waiting[0][1] + self._timeout - self._loop.time()
        if left > 0:
            self._watchdog = self._loop.call_later(left, self._watch)
        else:
            self.close()


class ConfirmingPipeline(Pipeline):
    """A pipeline on which the reply to a `confirmed` command counts only once `replicas` replicas have it too.

    `waits` are the commands that wait for them; the reply to the last one says how many there are. They are set once
    the server has told which it knows, before anything is `confirmed`.
    WAIT blocks its connection, and is about everything that was written over this connection before. So one WAIT
    follows all commands of a write, and what is called while it is under way leaves in the next write: the rounds grow
    with load, like batches do.
    """

    def __init__(self, timeout: float, lost: Callable[[], None], replicas: int) -> None:
        super().__init__(timeout, lost)
        self.waits: list[tuple[str | int, ...]] = []
        self._replicas = replicas
        self._unsent: list[tuple[asyncio.Future[Any], bytes]] = []
        self._round: list[tuple[asyncio.Future[Any], asyncio.Future[Any]]] = []
        self._sending = False  # a write is due: at the end of this turn of the loop or after the WAIT under way

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the connection is closed"))
            return future
        self._unsent.append((future, hiredis.pack_command(command)))  # type: ignore[arg-type]
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)
        return future

    def confirmed(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        reply = self.call(*command)
        if reply.done():
            return reply
        future: asyncio.Future[Any] = self._loop.create_future()
        self._round.append((reply, future))
        return future

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._unsent

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._send()  # to where nothing is written any more: what was not sent has no reply to expect either
        super().connection_lost(error)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        now = self._loop.time()
        self._waiting += [(future, now) for future, _ in unsent]
        data = b"".join([packed for _, packed in unsent])
        self._sending = bool(self._round)
        if self._round:
            for wait in self.waits:
                acknowledged: asyncio.Future[Any] = self._loop.create_future()
                settle = partial(self._settle, self._round) if wait is self.waits[-1] else ignore
                acknowledged.add_done_callback(settle)
                self._waiting.append((acknowledged, now))
                data += hiredis.pack_command(wait)  # type: ignore[arg-type]
            self._round = []
        if data and not self.closed:
            self._transport.write(data)
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(self._timeout, self._watch)

    def _settle(
        self, calls: list[tuple[asyncio.Future[Any], asyncio.Future[Any]]], acknowledged: asyncio.Future[Any]
    ) -> None:
        """Pass on the replies of a round, or that too few replicas have it."""
        shortfall = acknowledged.exception()
        if shortfall is None:
            reply = acknowledged.result()
            if isinstance(reply, hiredis.ReplyError):
                shortfall = StoreUnavailable(f"whether the replicas have it is not known: {reply}")
                self.close()  # its role or its settings have changed: a new connection finds out
            else:
                # WAITAOF replies how many disks have it: the server's own, and its replicas'.
                disks, replicas = reply if isinstance(reply, list) else (1, reply)
                if replicas < self._replicas or not disks:
                    shortfall = StoreUnavailable(f"{replicas} of {self._replicas} replicas have confirmed in time")
        for reply, future in calls:
            error = reply.exception() or shortfall
            if future.done():
                continue
            if error is None or (not reply.exception() and isinstance(reply.result(), hiredis.ReplyError)):
                future.set_result(reply.result())
            else:
                future.set_exception(error)
        self._sending = False
        if self._unsent and not self.closed:
            self._send()


def ignore(reply: asyncio.Future[Any]) -> None:
    """Nothing depends on this reply, an error neither."""
    if not reply.cancelled():
        reply.exception()


def refused(error: str, pipeline: Pipeline) -> StoreError:
    """What an error reply that names no other server means; a connection that has seen its best days is closed."""
    if error.startswith(LEAVING_ERRORS):
        pipeline.close()
    return (StoreUnavailable if error.startswith(PASSING_ERRORS) else StoreRejected)(error)
