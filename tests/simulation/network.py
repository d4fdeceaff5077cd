"""The network between the processes and the store's servers: what is written arrives later, in part, or never.

A connection keeps its bytes in order in each direction, and that is all it promises: it can be stalled, lose its end
at any byte, and deliver to the server what was written before the client knew that it was gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tests.simulation.world import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.machine import Machine
    from tests.simulation.world import World

#: Seconds between the questions of a blocked WAIT.
WAIT_STEP = 0.002
#: What the bytes that are written now belong to (see Observer).
TAG: ContextVar[object] = ContextVar("TAG")


class Link:
    """The way between a process and a server; each direction can be silent."""

    def __init__(self) -> None:
        self.silent = {"up": False, "down": False}
        self.connections: list[Connection] = []
        self.healed: list[asyncio.Future[None]] = []

    def set(self, direction: str, silent: bool) -> None:
        self.silent[direction] = silent
        if silent:
            return
        for connection in self.connections:
            connection.pump()
        if not any(self.silent.values()):
            waiting, self.healed = self.healed, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)


class Network:
    """Who reaches whom, and how fast.

    `latency` and `spread` are the least and the mean further seconds of each way; `late` is how likely it is that
    what was under way when a connection ended still reaches the server.
    """

    def __init__(self, world: World, latency: float, spread: float, late: float) -> None:
        self.world = world
        self.process = Process(world, "network")
        self.latency = latency
        self.spread = spread
        self.late = late
        #: Which machine answers at an address.
        self.addresses: dict[str, Machine] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._holding = 0  # how many ask for words to be held back
        self._holds: list[Connection] = []
        #: Kept, so that nothing is collected (and cleans up) while the world runs.
        self.connections: list[Connection] = []

    def link(self, process: Process, machine: Machine) -> Link:
        return self._links.setdefault((process.name, machine.name), Link())

    def links(self) -> list[Link]:
        return list(self._links.values())

    def hold_words(self, held: bool) -> None:
        """Hold back each operator's word, with its connection, until nobody asks for it any more."""
        self._holding += 1 if held else -1
        if not self._holding:
            holds, self._holds = self._holds, []
            for connection in holds:
                connection.stall("up", False)

    def written(self, connection: Connection, tag: Any) -> None:
        """What `tag` names has been written to a connection."""
        if self._holding and getattr(tag, "kind", None) in ("put", "delete", "resolve", "give_back"):
            connection.stall("up", True)
            self._holds.append(connection)

    def drop(self, process: Process) -> None:
        """A process has ended, and its connections with it."""
        for connection in self.connections:
            if connection.process is process:
                connection.end()

    def delay(self) -> float:
        return self.latency + self.world.random.expovariate(1 / self.spread)

    def later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> None:
        """Have something happen, whatever becomes of the process that asked for it."""
        self.process.call(self.world.call_later, seconds, callback, *args)

    async def connect(self, process: Process, factory: Callable[[], Any], address: str) -> tuple[Connection, Any]:
        """What the loop's create_connection does. Raises ConnectionRefusedError."""
        await asyncio.sleep(self.delay())
        machine = self.addresses[address]
        link = self.link(process, machine)
        if any(link.silent.values()):
            healed = self.world.create_future()
            link.healed.append(healed)
            await healed
        if not machine.up or self.addresses[address] is not machine:
            raise ConnectionRefusedError(f"{address} refused the connection")
        protocol = factory()
        connection = Connection(self, process, machine, link, protocol)
        self.connections.append(connection)
        link.connections.append(connection)
        machine.connections.append(connection)
        await asyncio.sleep(self.delay())
        protocol.connection_made(connection)
        return connection, protocol


class Connection(asyncio.Transport):
    """A connection, and the transport of its client's end."""

    def __init__(self, network: Network, process: Process, machine: Machine, link: Link, protocol: Any) -> None:
        super().__init__()
        self.process = process
        self.machine = machine
        self.session = machine.server.connect()
        self.client_open = True
        self.server_open = True
        self.stalled = {"up": False, "down": False}
        #: The next reply breaks off after so many of its bytes, and the connection with it.
        self.trip: int | None = None
        self._network = network
        self._link = link
        self._protocol = protocol
        self._up: deque[tuple[bytes, object]] = deque()
        self._down: deque[bytes] = deque()
        self._arrived = {"up": 0, "down": 0}
        self._latest = {"up": 0.0, "down": 0.0}
        self._commands: deque[tuple[list[bytes], object]] = deque()
        self._blocked_until: float | None = None
        self._ends_after: int | None = None  # bytes that still reach the server

    # The client's end.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return not self.client_open

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self.client_open:
            tag = TAG.get(None)
            self._up.append((bytes(data), tag))
            self._network.written(self, tag)
            self._travel("up")

    def writelines(self, chunks: Any) -> None:
        self.write(b"".join(chunks))

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self.client_open:
            self.client_open = False
            self.process.call(self._protocol.connection_lost, None)
            self._end_upstream()

    # The way.

    def cut(self, silent: bool = False) -> None:
        """The connection is lost; `silent`: its client isn't told."""
        if self.client_open and not silent:
            self.client_open = False
            self.process.call(self._protocol.connection_lost, ConnectionResetError("connection reset by peer"))
        self._end_upstream()

    def end(self) -> None:
        """The client's process has ended."""
        self.client_open = False
        self._end_upstream()

    def stall(self, direction: str, stalled: bool) -> None:
        self.stalled[direction] = stalled
        self.pump()

    def pump(self) -> None:
        """Go on with what has arrived, if it can be taken."""
        self._take_up()
        self._take_down()

    def _end_upstream(self) -> None:
        """Draw how much of what is under way still reaches the server."""
        if self._ends_after is not None:
            return
        draw = self._network.world.random
        under_way = sum(len(data) for data, _ in self._up)
        if under_way and draw.random() >= self._network.late:
            self._ends_after = draw.choice((0, draw.randrange(under_way + 1)))
        else:
            self._ends_after = under_way

    def _travel(self, direction: str) -> None:
        world = self._network.world
        at = max(world.time() + self._network.delay(), self._latest[direction])
        self._latest[direction] = at
        self._network.later(at - world.time(), self._arrive, direction)

    def _arrive(self, direction: str) -> None:
        self._arrived[direction] += 1
        (self._take_up if direction == "up" else self._take_down)()

    def _take_up(self) -> None:
        while self._arrived["up"] and self._up:
            if self._link.silent["up"] or self.stalled["up"] or not self.machine.responsive:
                return
            self._arrived["up"] -= 1
            data, tag = self._up.popleft()
            if self._ends_after is not None:
                data, self._ends_after = data[: self._ends_after], max(0, self._ends_after - len(data))
            if not data or not self.machine.accepts(self):
                continue
            self._commands += [(command, tag) for command in self.session.feed(data)]
            self._serve()

    def _serve(self) -> None:
        """Execute the commands that are there, and send their replies."""
        replies = []
        world = self._network.world
        while self._commands and self.machine.accepts(self):
            command, tag = self._commands[0]
            wait = self.session.blocks(command)
            if wait is not None:
                if self._blocked_until is None:
                    self._blocked_until = world.time() + min(wait, 1e9) / 1000
                if world.time() < self._blocked_until:
                    self._network.later(WAIT_STEP, self._serve)
                    break
            self._blocked_until = None
            self._commands.popleft()
            replies.append(self.machine.execute(self, command, tag))
        if replies and self.client_open:
            self._down.append(b"".join(replies))
            self._travel("down")

    def _take_down(self) -> None:
        while self._arrived["down"] and self._down:
            if self._link.silent["down"] or self.stalled["down"]:
                return
            self._arrived["down"] -= 1
            data = self._down.popleft()
            if not self.client_open:
                continue
            if self.trip is not None:
                data, self.trip = data[: self.trip], None
                if data:
                    self.process.call(self._receive, data)
                self.cut()
                continue
            self.process.call(self._receive, data)

    def _receive(self, data: bytes) -> None:
        if self.client_open:
            self._protocol.data_received(data)
