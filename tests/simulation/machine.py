"""A machine that runs a server of the store: it can be down, frozen, started again, and told to remember less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.redis import Server

if TYPE_CHECKING:
    from tests.simulation.network import Connection, Network
    from tests.simulation.observer import Observer
    from tests.simulation.world import World


class Machine:
    """A server and its connections. `clock` is what its clock is ahead of the world's, in seconds."""

    def __init__(self, world: World, network: Network, observer: Observer, name: str, fsync: str) -> None:
        self.name = name
        self.clock = 0.0
        self.up = True
        self.frozen = False
        self.connections: list[Connection] = []
        self.server = Server(lambda: START + round((world.time() + self.clock) * 1e6), appendfsync=fsync)
        self.eye = self.server.connect()
        self._network = network
        self._observer = observer

    @property
    def responsive(self) -> bool:
        return not self.frozen

    def accepts(self, connection: Connection) -> bool:
        """Whether what arrives over a connection is executed: it began after the server did."""
        return self.up and connection.server_open

    def execute(self, connection: Connection, command: list[bytes], tag: Any) -> bytes:
        return self._observer.execute(self, connection, command, tag)

    def stop(self) -> None:
        """The server ends: nothing is executed any more, and its connections are lost."""
        self.up = False
        self.drop()

    def drop(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.server_open = False
            connection.cut()

    def start(self, lost: int | None) -> None:
        """Start the server again on its append-only file, without the last `lost` commands that weren't synced."""
        self.server.restart(lost=lost)
        self.eye = self.server.connect()
        self.up = True

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        if not frozen:
            for connection in list(self.connections):
                connection.pump()


#: What the servers' clocks show when the world begins, in microseconds.
START = 1_700_000_000_000_000
