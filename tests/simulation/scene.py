"""One history: everything that a seed's plan names, from the first claim to the last orderly stop."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import uuid
from typing import TYPE_CHECKING

from loguru import logger

from tests.simulation.actors import ADDRESS, Asker, Client, Operator, Worker
from tests.simulation.buyers import Buyer, Office
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

    from tests.simulation.history import Operation
    from tests.simulation.plan import Fault

#: Seconds after the last fault within which everything must be well again.
RECOVERY = 8.0


class Scene:
    """The world of a history."""

    def __init__(self, seed: int, faults: Sequence[Fault] | None = None) -> None:
        self.plan = plan = Plan(abs(seed), sales=seed >= 0)
        self.seed = seed = abs(seed)
        self.faults = plan.faults if faults is None else list(faults)
        self.world = world = World.of(seed)
        self.network = Network(world, plan.latency, plan.spread, plan.late)
        self.history = History(world)
        self.observer = Observer(world, self.history)
        self.observer.raises = plan.on_loss == "raise"
        self.machines = [Machine(world, self.network, self.observer, "m1", plan.fsync)]
        self.machines[0].clock = plan.clock
        self.network.addresses[ADDRESS] = self.observer.primary = self.machines[0]
        if plan.replicated:
            self.machines.append(Machine(world, self.network, self.observer, "m2", plan.fsync))
            self.machines[1].clock = plan.clock
            self.machines[1].server.follow(self.machines[0].server)
            self.machines[1].up = False
        self.people = Process(world, "people")
        self.workers = [Worker(self, index) for index in range(1, plan.workers + 1)]
        self.chaos = Chaos(self)
        #: The keys used on each counter, with the sizes, holds and claimants of their claims.
        self.orders: dict[str, list[tuple[str, int, int, str]]] = {}
        self._sales = random.Random(f"sales {seed}")
        self._buyers: list[asyncio.Task[None]] = []
        self.ending = False

    def said_lost(self, name: str) -> bool:
        """Whether a claim on a counter was lately answered that it is lost."""
        return any(
            op.name == name and op.answer is not None and op.answer[0] == "lost" for op in self.history.operations[-30:]
        )

    def buy(self, claim: Operation) -> None:
        """Somebody has got a hold."""
        buyer = Buyer(self, claim, random.Random(self._sales.random()))
        self._buyers.append(self.people.start(buyer.run()))

    def rules(self, name: str, limit: int, draw: random.Random | None = None) -> tuple[int, str, str]:
        """Each, every and zone of a counter; now and then an operator who draws thinks otherwise."""
        plan = self.plan
        each, (every, zone) = plan.each.get(name, 0), plan.every.get(name, ("", ""))
        if draw is not None and plan.sale and draw.random() < plan.rethinks:
            each = draw.choice((0, each + 1, max(0, each - 1), 3))
            every, zone = draw.choice(((every, zone), (every, zone), ("", ""), ("1s", ""), ("day", "Europe/Berlin")))
        return min(each, limit), every, zone

    async def run(self) -> None:
        draw = random.Random(f"people {self.seed}")
        asker = Asker(self, "start", random.Random(f"start {self.seed}"))
        plan = self.plan
        for name in plan.counters:
            if name != "default" or self.rules(name, 1) != (0, "", ""):
                rules = self.rules(name, plan.limits[name])
                await asker.ask("put", name, self.workers[0], limit=plan.limits[name], rules=rules)
        operators: list[asyncio.Task[None]] = []
        for index in range(1, plan.operators + 1):
            operator = Operator(self, f"op{index}", random.Random(draw.random()), random.Random(self._sales.random()))
            operators.append(self.people.start(operator.run()))
        if plan.returns:
            operators.append(self.people.start(Office(self, "office", random.Random(self._sales.random())).run()))
        clients = [
            Client(self, f"c{index}", random.Random(draw.random()), random.Random(self._sales.random()))
            for index in range(1, plan.clients + 1)
        ]
        chaos = self.people.start(self.chaos.run(self.faults))
        await asyncio.wait([self.people.start(client.run()) for client in clients])
        await chaos
        self.ending = True
        await asyncio.wait([*operators, *self._buyers, *[asyncio.ensure_future(asyncio.sleep(0))]])
        self.chaos.end()
        await self._recover(asker)
        await asyncio.wait([self.people.start(worker.stop()) for worker in self.workers])

    async def _recover(self, asker: Asker) -> None:
        """Once nothing fails any more, everything is well: after a reset, where something was lost."""
        await asyncio.sleep(RECOVERY)
        for name in self.plan.counters:
            claimant = "z" if self.plan.each.get(name) else ""
            answers = [(await asker.ask("claim", name, worker, claimant=claimant)).answer for worker in self.workers]
            if any(answer and answer[0] in ("lost", "missing") for answer in answers):
                await asker.ask("reset", name, self.workers[0])
                if name != "default":
                    limit = self.plan.limits[name]
                    await asker.ask("put", name, self.workers[0], limit=limit, rules=self.rules(name, limit))
        self.history.calm = self.world.time()
        for name in self.plan.counters:
            claimant = "z" if self.plan.each.get(name) else ""
            for worker in self.workers:
                await asker.ask("claim", name, worker, claimant=claimant)
        for worker in self.workers:
            await asker.ask("check", "default", worker)


def simulate(seed: int, faults: Sequence[Fault] | None = None) -> Scene:
    """Run the history of a seed and judge it; that of a negative one is the same without sales."""
    logger.disable("pythonricing")
    state, make, give_way = random.getstate(), uuid.uuid4, os.sched_yield
    random.seed(f"heart {abs(seed)}")
    uuid.uuid4 = lambda: uuid.UUID(int=random.getrandbits(128), version=4)
    token, holds = secrets.token_urlsafe, random.Random(f"holds {abs(seed)}")
    secrets.token_urlsafe = lambda nbytes=None: f"h{holds.getrandbits(64):021x}"
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
        uuid.uuid4, os.sched_yield, secrets.token_urlsafe = make, give_way, token
        logger.enable("pythonricing")
        scene.world.close()
    return scene
