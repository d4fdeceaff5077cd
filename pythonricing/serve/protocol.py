"""uvicorn's HTTP with bounds that Granian has and uvicorn has not: for heads, and for requests that are sent ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pythonricing.serve.servers import HEAD_BYTES, HEAD_SECONDS

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport


#: Requests of a connection that may wait for the answer to an earlier one.
MAX_PIPELINED = 16
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Protocol(HttpToolsProtocol):
    """Closes a connection that says nothing, only half a head, a head without an end, or far more than is answered.

    Between requests uvicorn's own keep-alive time-out does so, until the first byte of the next one. A request whose
    head comes in one piece costs no timer.
    """

    _limit: TimerHandle | None = None
    _size = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._limit is not None:
            self._size += len(data)
            if self._size > HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()
        elif self.cycle is not None and self.cycle.response_complete:
            self._limit = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        self._lift()
        if len(self.pipeline) >= MAX_PIPELINED:
            self.pipeline.clear()  # none of them has begun, so none counts
            self.transport.abort()
            raise ConnectionAbortedError("too many requests were sent ahead")  # ends the parser's work
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lift()
        super().connection_lost(exc)

    def _lift(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
            self._size = 0
