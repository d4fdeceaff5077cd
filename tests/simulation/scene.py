"""One history: everything that a seed's plan names, from the first claim to the last orderly stop."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from typing import TYPE_CHECKING

from loguru import logger

from tests.simulation.actors import ADDRESS, Asker, Client, Operator, Worker
from tests.simulation.checker import judge
from tests.simulation.faults import Chaos
from tests.simulation.history import History
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.observer import Observer
from tests.simulation.plan import Plan
from tests.simulation.world import Endless, Process, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulation.plan import Fault

#: Seconds after the last fault within which everything must be well again.
RECOVERY = 8.0


class Scene:
    """The world of a history."""

    def __init__(self, seed: int | str, faults: Sequence[Fault] | None = None) -> None:
        self.seed = seed
        self.plan = plan = Plan(seed)
        self.faults = plan.faults if faults is None else list(faults)
        self.world = world = World.of(seed)
        self.network = Network(world, plan.latency, plan.spread, plan.late)
        self.history = History(world)
        self.observer = Observer(world, self.history)
        self.observer.raises = plan.on_loss == "raise"
        self.machines = [Machine(world, self.network, self.observer, "m1", plan.fsync)]
        self.network.addresses[ADDRESS] = self.observer.primary = self.machines[0]
        if plan.replicated:
            self.machines.append(Machine(world, self.network, self.observer, "m2", plan.fsync))
            self.machines[1].server.follow(self.machines[0].server)
            self.machines[1].up = False
        self.people = Process(world, "people")
        self.workers = [Worker(self, index) for index in range(1, plan.workers + 1)]
        self.chaos = Chaos(self)
        #: The keys used on each counter, with their sizes.
        self.orders: dict[str, list[tuple[str, int]]] = {}
        self.ending = False

    def said_lost(self, name: str) -> bool:
        """Whether a claim on a counter was lately answered that it is lost."""
        return any(
            op.name == name and op.answer is not None and op.answer[0] == "lost" for op in self.history.operations[-30:]
        )

    async def run(self) -> None:
        draw = random.Random(f"people {self.seed}")
        asker = Asker(self, "start", random.Random(f"start {self.seed}"))
        for name in self.plan.counters:
            if name != "default":
                await asker.ask("put", name, self.workers[0], limit=self.plan.limits[name])
        operators = [
            self.people.start(Operator(self, f"op{index}", random.Random(draw.random())).run())
            for index in range(1, self.plan.operators + 1)
        ]
        clients = [Client(self, f"c{index}", random.Random(draw.random())) for index in range(1, self.plan.clients + 1)]
        chaos = self.people.start(self.chaos.run(self.faults))
        await asyncio.wait([self.people.start(client.run()) for client in clients])
        await chaos
        self.ending = True
        await asyncio.wait([*operators, *[asyncio.ensure_future(asyncio.sleep(0))]])
        self.chaos.end()
        await self._recover(asker)
        await asyncio.wait([self.people.start(worker.stop()) for worker in self.workers])

    async def _recover(self, asker: Asker) -> None:
        """Once nothing fails any more, everything is well: after a reset, where something was lost."""
        await asyncio.sleep(RECOVERY)
        for name in self.plan.counters:
            answers = [(await asker.ask("claim", name, worker)).answer for worker in self.workers]
            if any(answer and answer[0] in ("lost", "missing") for answer in answers):
                await asker.ask("reset", name, self.workers[0])
                if name != "default":
                    await asker.ask("put", name, self.workers[0], limit=self.plan.limits[name])
        self.history.calm = self.world.time()
        for name in self.plan.counters:
            for worker in self.workers:
                await asker.ask("claim", name, worker)
        for worker in self.workers:
            await asker.ask("check", "default", worker)


def simulate(seed: int | str, faults: Sequence[Fault] | None = None) -> Scene:
    """Run the history of a seed and judge it."""
    logger.disable("pythonricing")
    state, make, give_way = random.getstate(), uuid.uuid4, os.sched_yield
    random.seed(f"heart {seed}")
    uuid.uuid4 = lambda: uuid.UUID(int=random.getrandbits(128), version=4)
    os.sched_yield = lambda: None  # the machine's other processes are none of this world
    try:
        scene = Scene(seed, faults)
        try:
            scene.world.run_until_complete(scene.people.start(scene.run()))
        except Endless as error:
            scene.history.object("every history ends", "", str(error))
        scene.world.inspect()
        judge(scene)
    finally:
        random.setstate(state)
        uuid.uuid4, os.sched_yield = make, give_way
        logger.enable("pythonricing")
        scene.world.close()
    return scene
