"""What people do with what they got: confirm their holds, or give them back, or forget them; and give numbers back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.actors import Asker

if TYPE_CHECKING:
    import random

    from pythonricing.counting.model import Run
    from tests.simulation.history import Operation
    from tests.simulation.scene import Scene

#: Answers after which one asks again.
AGAIN = ("unavailable", "reset", "left")


class Buyer(Asker):
    """Has a hold: confirms it, in part too, gives it back, both, or neither; insists, also when it is too late."""

    def __init__(self, scene: Scene, claim: Operation, draw: random.Random) -> None:
        super().__init__(scene, f"{claim.actor}'s buyer", draw)
        self._claim = claim

    async def run(self) -> None:
        draw, plan, claim = self.draw, self.scene.plan, self._claim
        await asyncio.sleep(draw.expovariate(1 / plan.decides))
        choice = draw.choices(list(plan.choices), list(plan.choices.values()))[0]
        if choice == "leave":
            return
        kind, number = "release" if choice == "release" else "confirm", None
        if choice == "part":
            number = draw.randint(1, claim.size + (draw.random() < 0.1))
        while not self.scene.ending:
            done = await self._resolve(kind, number)
            unanswered = done.answer is None or done.answer[0] in AGAIN
            if draw.random() >= (0.8 if unanswered else plan.insists):
                return
            await asyncio.sleep(draw.random() * (0.3 if unanswered else 3.0))
            if draw.random() < 0.2:
                kind, number = draw.choice(("confirm", "release")), None

    async def _resolve(self, kind: str, number: int | None) -> Operation:
        worker = self.draw.choice(self.scene.workers)
        return await self.ask(kind, self._claim.name, worker, limit=number, hold=self._claim.got[0])


class Office(Asker):
    """Gives numbers back that somebody has got, or nobody; some of them again, or twice at once."""

    async def run(self) -> None:
        draw, plan = self.draw, self.scene.plan
        while not self.scene.ending:
            await asyncio.sleep(draw.expovariate(1 / plan.returns))
            name = draw.choice(plan.counters)
            runs = (self._run(name),) if draw.random() < 0.8 else (self._run(name), self._run(name))
            if len(runs) == 2 and runs[0][0] <= runs[1][1] and runs[1][0] <= runs[0][1]:
                runs = runs[:1]
            times = 2 if draw.random() < 0.1 else 1
            await asyncio.gather(*(self._give_back(name, runs) for _ in range(times)))

    async def _give_back(self, name: str, runs: tuple[Run, ...]) -> None:
        for _ in range(3):
            done = await self.ask("give", name, self.draw.choice(self.scene.workers), runs=runs)
            if done.answer is None or done.answer[0] not in AGAIN or self.draw.random() < 0.3:
                break

    def _run(self, name: str) -> Run:
        draw = self.draw
        lately = [op for op in self.scene.history.operations[-200:] if op.name == name and op.admitted]
        op = draw.choice(lately) if lately else None
        last = 0 if op is None or op.answer is None else op.answer[1]
        if op is None or draw.random() < 0.15:  # what nobody has got, or only a worker
            first = last + draw.randint(1, 40)
            return first, first + draw.randint(0, 3)
        first = max(1, last - draw.randint(0, max(0, op.size - 1)))
        return first, last if draw.random() < 0.9 else last + draw.randint(0, 5)
