"""A TCP proxy that breaks a connection in the ways in which networks do."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from loadtests.rig.waiting import PATIENCE, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

#: pass      forward everything
#: delay     forward every piece `delay` seconds late
#: cut       forward the first byte of a reply, then close the connection
#: deaf      forward commands and swallow their replies: the store has executed what nobody hears of
#: silent    accept connections and swallow everything
#: hold      keep commands back until `release`, even if whoever sent them has closed the connection
#: refuse    close every connection and listen no more
Mode = Literal["pass", "delay", "cut", "deaf", "silent", "hold", "refuse"]


class _Pipe:
    """One connection through the proxy. What it has swallowed spoils it for good: streams have no gaps."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        #: The client's port.
        self.client = 0
        self.deaf = self.mute = False
        self.held: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.client = writer.get_extra_info("peername")[1]
        self.mute = self.deaf = not self.proxy.reachable_from(self.client)
        self.proxy.pipes.add(self)
        try:
            store_reader, store_writer = await asyncio.open_connection("127.0.0.1", self.proxy.target)
            self.writers.append(store_writer)
            await asyncio.gather(self._commands(reader, store_writer), self._replies(store_reader, writer))
        except OSError:
            pass
        finally:
            self.close()
            self.proxy.pipes.discard(self)

    async def _commands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await _read(reader):
            self.mute = self.mute or self.proxy.mode == "silent"
            if (self.proxy.mode == "hold" and self.proxy.holds(data)) or self.held:
                self.held.append(data)
            elif not self.mute:
                if self.proxy.mode == "delay":
                    await asyncio.sleep(self.proxy.delay)
                self.proxy.passed += 1
                writer.write(data)
        if self.held:
            await self.proxy.released.wait()
            self.proxy.late += len(self.held)
            writer.write(b"".join(self.held))
            await writer.drain()
            await asyncio.sleep(self.proxy.linger)
        writer.close()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await _read(reader):
            mode = self.proxy.mode
            self.deaf = self.deaf or mode in ("deaf", "silent")
            if self.deaf or self.mute:
                self.proxy.swallowed += 1
                continue
            if mode == "cut":
                self.proxy.swallowed += 1
                writer.write(data[:1])
                with suppress(OSError):
                    await writer.drain()
                break
            if mode == "delay":
                await asyncio.sleep(self.proxy.delay)
            writer.write(data)
        writer.close()

    def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65536)
    except OSError:
        return b""


class Proxy:
    """Listens on `port` for the store on `target`, from a thread of its own."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.mode: Mode = "pass"
        self.delay = 0.0
        self.holds: Callable[[bytes], bool] = lambda data: True
        #: Pieces of commands that were passed on, of replies kept from the service, of commands delivered late.
        self.passed = self.swallowed = self.late = 0
        #: Seconds for which a late command's connection stays open after it was delivered.
        self.linger = 0.2
        self.pipes: set[_Pipe] = set()
        #: Whether a client, given by its port, is on the store's side of a partition.
        self.reachable_from: Callable[[int], bool] = lambda client: True
        self.released = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._listen())

    def set(self, mode: Mode, delay: float = 0.0, holds: Callable[[bytes], bool] = lambda data: True) -> None:
        """Behave so from now on. A connection is held from the first piece of commands on of which `holds` is true."""
        self.delay = delay
        self.holds = holds
        if mode == "refuse":
            self.mode = mode
            self._call(self._refuse())
            return
        if self.mode == "refuse":
            self._call(self._listen())
        self.mode = mode

    def drop(self) -> None:
        """Close every connection once."""
        self._call(self._drop())

    def part(self, reachable_from: Callable[[int], bool]) -> None:
        """Let only these clients reach the store from now on; to others it is silent, in both directions."""
        self.reachable_from = reachable_from
        for pipe in list(self.pipes):
            if not reachable_from(pipe.client):
                pipe.mute = pipe.deaf = True

    def heal(self) -> None:
        """Let every client reach the store again, over new connections."""
        self.reachable_from = lambda client: True
        self._call(self._drop(lambda pipe: pipe.mute))

    def wait_for_a_lost_reply(self) -> None:
        before = self.swallowed
        wait_until(lambda: self.swallowed > before, "a reply to be lost")

    def release(self) -> None:
        """Deliver the commands that were held back."""
        self._loop.call_soon_threadsafe(self.released.set)

    def stop(self) -> None:
        self._call(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Pipe(self).run(reader, writer)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._drop()

    async def _drop(self, which: Callable[[_Pipe], bool] = lambda pipe: True) -> None:
        for pipe in filter(which, list(self.pipes)):
            pipe.close()
