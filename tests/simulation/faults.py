"""What goes wrong, and that it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.actors import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.simulation.network import Connection
    from tests.simulation.plan import Fault
    from tests.simulation.scene import Scene

T = TypeVar("T")


def pick(things: Sequence[T], draw: float) -> T:
    return things[int(draw * len(things))]


class Chaos:
    """Makes each fault of a list happen at its time, and undoes it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.happened: dict[str, int] = {}
        if scene.plan.replicated:
            scene.network.later(scene.plan.lag, self._replicate)

    async def run(self, faults: Sequence[Fault]) -> None:
        scene = self._scene
        lasting = []
        for fault in faults:
            await asyncio.sleep(max(0.0, fault.when - scene.world.time()))
            scene.history.note("", f"FAULT {fault}")
            if fault.kind in ("kill", "stop") and not self._worker(fault).accepting:
                continue
            self.happened[fault.kind] = self.happened.get(fault.kind, 0) + 1
            act: Callable[[Fault], Any] = getattr(self, "_" + fault.kind.replace(" ", "_"))
            lasting.append(scene.people.start(self._last(fault, act)))
        if lasting:
            await asyncio.wait(lasting)

    async def _last(self, fault: Fault, act: Callable[[Fault], Any]) -> None:
        undo = act(fault)
        if asyncio.iscoroutine(undo):
            await undo
        elif undo is not None:
            await asyncio.sleep(fault.seconds)
            undo()
            self._scene.history.note("", f"END of {fault.kind}")

    def end(self) -> None:
        """Everything works again."""
        scene = self._scene
        for machine in scene.machines:
            machine.server.full = False
            machine.freeze(False)
        for link in scene.network.links():
            link.set("up", False)
            link.set("down", False)
        scene.history.note("", "all faults have ended")

    # The network

    def _connection(self, fault: Fault) -> Connection | None:
        open_ones = [connection for connection in self._scene.network.connections if connection.client_open]
        return pick(open_ones, fault.draws[0]) if open_ones else None

    def _cut(self, fault: Fault) -> None:
        if (connection := self._connection(fault)) is not None:
            connection.cut()

    def _silent_cut(self, fault: Fault) -> None:
        if (connection := self._connection(fault)) is not None:
            connection.cut(silent=True)

    def _trip(self, fault: Fault) -> None:
        if (connection := self._connection(fault)) is not None:
            connection.trip = int(fault.draws[1] * 40) if fault.draws[2] < 0.5 else 0

    def _stall_up(self, fault: Fault) -> Callable[[], None] | None:
        return self._stall(fault, "up")

    def _stall_down(self, fault: Fault) -> Callable[[], None] | None:
        return self._stall(fault, "down")

    def _stall(self, fault: Fault, direction: str) -> Callable[[], None] | None:
        connection = self._connection(fault)
        if connection is None:
            return None
        connection.stall(direction, True)
        return lambda: connection.stall(direction, False)

    def _partition(self, fault: Fault) -> Callable[[], None]:
        scene = self._scene
        link = scene.network.link(self._worker(fault).process, scene.observer.primary)
        directions = pick((("up",), ("down",), ("up", "down")), fault.draws[1])
        for direction in directions:
            link.set(direction, True)

        def heal() -> None:
            for direction in directions:
                link.set(direction, False)

        return heal

    def _held_words(self, fault: Fault) -> Callable[[], None]:
        network = self._scene.network
        network.hold_words(True)
        return lambda: network.hold_words(False)

    # Workers

    def _worker(self, fault: Fault) -> Any:
        return pick(self._scene.workers, fault.draws[0])

    def _kill(self, fault: Fault) -> Callable[[], None]:
        worker = self._worker(fault)
        worker.kill()
        return worker.spawn  # type: ignore[no-any-return]

    async def _stop(self, fault: Fault) -> None:
        worker = self._worker(fault)
        await worker.stop()
        await asyncio.sleep(fault.seconds)
        worker.spawn()

    def _pause(self, fault: Fault) -> Callable[[], None] | None:
        scene, process = self._scene, self._worker(fault).process
        if process.paused:
            return None
        began = scene.world.time()
        process.pause()

        def resume() -> None:
            scene.history.pauses.setdefault(process.name, []).append((began, scene.world.time()))
            process.resume()

        return resume

    # The store

    def _restart(self, fault: Fault) -> Callable[[], None] | None:
        scene, machine = self._scene, self._scene.observer.primary
        if not machine.up:
            return None
        machine.stop()

        def start() -> None:
            lost = int(fault.draws[0] * (machine.server.unsynced + 1))
            if lost:
                scene.observer.lose()
            machine.start(lost)
            scene.observer.look_again()

        return start

    async def _outage(self, fault: Fault) -> None:
        """The store goes when it has executed what it never answers."""
        machine = self._scene.observer.primary
        if not machine.up:
            return
        for connection in list(machine.connections):
            connection.stall("down", True)
        await asyncio.sleep(fault.draws[1] * 0.3)
        if machine.up:
            machine.stop()
            await asyncio.sleep(fault.seconds)
            machine.start(0)

    def _freeze(self, fault: Fault) -> Callable[[], None]:
        machine = self._scene.observer.primary
        machine.freeze(True)
        return lambda: machine.freeze(False)

    def _flush(self, fault: Fault) -> None:
        observer = self._scene.observer
        observer.primary.server.flush()
        observer.lose()
        observer.look_again()

    def _restore(self, fault: Fault) -> Callable[[], None]:
        observer = self._scene.observer
        backup = observer.primary.server.copy()

        def restore() -> None:
            machine = observer.primary
            if not machine.up:
                return
            machine.drop()
            machine.server.restore(backup)
            machine.eye = machine.server.connect()
            observer.lose()
            observer.look_again()

        return restore

    def _replicate(self) -> None:
        scene = self._scene
        replica = next((machine for machine in scene.machines if machine.server.primary is not None), None)
        if replica is not None and scene.observer.primary.up:
            replica.server.catch_up(scene.world.random.choice((None, 1, 5)))
        scene.network.later(scene.world.random.uniform(0.5, 1.5) * scene.plan.lag, self._replicate)

    def _failover(self, fault: Fault) -> None:
        scene, old = self._scene, self._scene.observer.primary
        new = next((machine for machine in scene.machines if machine.server.primary is not None), None)
        if new is None or not old.up:
            return
        if new.server.lag or new.server.history is not old.server.history:
            scene.observer.lose()
        old.stop()
        new.server.promote()
        new.eye = new.server.connect()
        new.up = True
        old.server.follow(new.server)
        scene.network.addresses[ADDRESS] = scene.observer.primary = new
        scene.observer.look_again()

    def _full(self, fault: Fault) -> Callable[[], None]:
        server = self._scene.observer.primary.server
        server.full = True

        def free() -> None:
            server.full = False

        return free

    def _clock(self, fault: Fault) -> None:
        observer = self._scene.observer
        observer.clock_stepped = True
        observer.primary.clock += (fault.draws[0] - 0.5) * 120
