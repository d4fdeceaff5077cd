"""Workers with the real heart and the real pipeline, clients that claim, and operators that misbehave as people do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pythonricing.counting.counters import Counters
from pythonricing.counting.model import (
    BadRules,
    ClaimantMissing,
    ClaimantUnwanted,
    HoldExpired,
    HoldResolved,
    KeyReused,
    NoSuchCounter,
    NoSuchHold,
    NoSuchNumber,
    StateLost,
    StoreError,
    TooMany,
)
from pythonricing.stores.redis.store import RedisStore
from tests.simulation.history import Recorder
from tests.simulation.observer import OPERATION, Watched
from tests.simulation.world import Process

if TYPE_CHECKING:
    import random

    from pythonricing.counting.model import Run
    from tests.simulation.history import Operation
    from tests.simulation.scene import Scene

#: Where the workers find the store.
ADDRESS = "store"
#: How an operation ends that the service refuses; those that come first are the others' kinds.
ENDS: dict[type[Exception], str] = {
    StateLost: "lost",
    NoSuchCounter: "missing",
    NoSuchNumber: "no number",
    NoSuchHold: "no hold",
    KeyReused: "reused",
    ClaimantMissing: "claimant missing",
    ClaimantUnwanted: "claimant unwanted",
    TooMany: "too many",
    BadRules: "bad rules",
}
#: Seconds after which a worker that can't stop is killed, as a server does.
STOP_SECONDS = 30.0


class Worker:
    """A worker, and those that take its place: each is a process of its own with a heart that knows nothing."""

    def __init__(self, scene: Scene, index: int) -> None:
        self._scene = scene
        self._index = index
        self._generation = 0
        self.process: Process
        self.counters: Counters
        self.accepting = False
        self._asked: dict[Operation, tuple[asyncio.Future[Any], asyncio.Future[None] | None]] = {}
        self.spawn()

    @property
    def name(self) -> str:
        return self.process.name

    def spawn(self) -> None:
        scene = self._scene
        self._generation += 1
        self._asked = {}
        self.process = Process(scene.world, f"w{self._index}.{self._generation}")
        self.process.call(self._begin)
        self.accepting = True
        scene.history.note("", f"{self.name} begins")

    def _begin(self) -> None:
        scene, plan = self._scene, self._scene.plan
        name = self.name
        process = self.process

        async def dial(factory: Any, address: Any) -> Any:
            return await scene.network.connect(process, factory, ADDRESS)

        store = RedisStore(f"redis://{ADDRESS}:6379/0", plan.timeout, 0, plan.on_loss, dial)  # type: ignore[arg-type]
        journal = Recorder(scene.history, scene.world, name, lambda counter: scene.observer.sent_at(name, counter))
        self.counters = Counters(
            Watched(store, name, scene.observer),
            journal,
            limit=plan.setting,
            timeout=plan.timeout,
            halt_cache=plan.halt_cache,
            lease=plan.lease,
            clock=scene.world.time,
        )
        self.process.start(self.counters.open())

    def kill(self) -> None:
        """End at once: what was asked is never answered."""
        if not self.process.alive:
            return
        scene = self._scene
        scene.history.note("", f"{self.name} is killed")
        scene.history.killed[self.name] = scene.world.time()
        self.accepting = False
        self.process.kill()
        scene.network.drop(self.process)
        asked, self._asked = self._asked, {}
        for future, _ in asked.values():
            scene.network.later(scene.network.delay(), _set, future, ("reset",))

    async def stop(self) -> None:
        """End in an orderly way, as a server does: what was asked is answered."""
        if not self.accepting:
            return
        scene, name = self._scene, self.name
        scene.history.note("", f"{name} stops")
        scene.history.stopped[name] = scene.world.time()
        self.accepting = False
        process = self.process
        end = scene.world.time() + STOP_SECONDS
        while self._asked and process.alive and scene.world.time() < end:
            await asyncio.sleep(0.05)
        if process.alive:
            closing = process.start(self.counters.close())
            while not closing.done() and process.alive and scene.world.time() < end:
                await asyncio.sleep(0.05)
            scene.history.note("", f"{name} has stopped")
            process.kill()
            scene.network.drop(process)

    def receive(self, operation: Operation, future: asyncio.Future[Any]) -> None:
        """A request arrives."""
        if not self.accepting:
            _set(future, ("reset",))
            return
        operation.worker = self.name
        operation.arrived = self._scene.world.time()
        self._asked[operation] = (future, None)
        self.process.call(self._serve, operation, future)

    def leave(self, operation: Operation) -> None:
        """Whoever asked has gone."""
        asked = self._asked.get(operation)
        if asked is not None and asked[1] is not None:
            self.process.call(_set, asked[1], None)

    def _serve(self, operation: Operation, future: asyncio.Future[Any]) -> None:
        gone = self._scene.world.create_future()
        self._asked[operation] = (future, gone)
        self._scene.world.create_task(self._answer(operation, future, gone))

    async def _answer(self, operation: Operation, future: asyncio.Future[Any], gone: asyncio.Future[None]) -> None:
        OPERATION.set(operation)
        try:
            answer = await self._ask(operation, gone)
        except HoldResolved as error:
            (resolution,) = error.args
            word = "expired" if isinstance(error, HoldExpired) else "otherwise"
            answer = (word, resolution.outcome, resolution.size, *resolution.numbers)
        except tuple(ENDS) as error:
            answer = (ENDS[type(error)],)
        except StoreError as error:
            answer = ("unavailable", str(error))
        except Exception as error:
            answer = ("error", repr(error))
        scene = self._scene
        operation.decided = scene.world.time()
        operation.decision = answer
        del self._asked[operation]
        scene.network.later(scene.network.delay(), _set, future, answer)

    async def _ask(self, operation: Operation, gone: asyncio.Future[None]) -> tuple[Any, ...]:
        async def left() -> None:
            await gone

        match operation.kind:
            case "claim":
                operation.asked = self._scene.world.time()
                operation.knew = self._scene.observer.knows(self.name, operation.name)
                assert isinstance(operation.hold, int)
                answer = await self.counters.claim(
                    operation.name,
                    operation.size,
                    operation.key,
                    left,
                    hold=operation.hold,
                    claimant=operation.claimant,
                )
                if answer.admitted:
                    operation.got = answer.hold, answer.expires
                    return ("admitted", answer.request_count, answer.limit, *answer.numbers)
                return ("capped" if answer.capped else "refused", answer.request_count, answer.limit)
            case "confirm":
                assert isinstance(operation.hold, str)
                resolution, _ = await self.counters.confirm(operation.name, operation.hold, operation.limit)
                return ("resolved", resolution.outcome, resolution.size, *resolution.numbers)
            case "release":
                assert isinstance(operation.hold, str)
                resolution, _ = await self.counters.release(operation.name, operation.hold)
                return ("resolved", resolution.outcome, resolution.size, *resolution.numbers)
            case "give":
                given, counter = await self.counters.give_back(operation.name, operation.runs)
                return ("given", given, counter.count)
            case "put":
                assert operation.limit is not None
                each, every, zone = operation.rules
                counter, created = await self.counters.put(
                    operation.name, operation.limit, each=each, every=every, zone=zone
                )
                return ("created" if created else "changed", counter.count, counter.limit)
            case "reset":
                await self.counters.delete(operation.name)
                return ("deleted",)
            case "check":
                await self.counters.check()
                return ("ready",)
            case _:
                counter = await self.counters.read(operation.name)
                return ("read", counter.count, counter.limit)


def _set(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


class Asker:
    """Somebody who asks workers over the network."""

    def __init__(self, scene: Scene, name: str, draw: random.Random) -> None:
        self.scene = scene
        self.name = name
        self.draw = draw

    async def ask(
        self,
        kind: str,
        counter: str,
        worker: Worker,
        patience: float = 90.0,
        size: int = 1,
        key: str | None = None,
        limit: int | None = None,
        hold: int | str = 0,
        claimant: str = "",
        rules: tuple[int, str, str] = (0, "", ""),
        runs: tuple[Run, ...] = (),
    ) -> Operation:
        scene = self.scene
        operation = scene.history.begin(kind, self.name, worker.name, counter)
        operation.size, operation.key, operation.limit, operation.rules = size, key, limit, rules
        operation.hold, operation.claimant, operation.runs = hold, claimant, runs
        future: asyncio.Future[Any] = scene.world.create_future()
        scene.network.later(scene.network.delay(), worker.receive, operation, future)
        try:
            async with asyncio.timeout(patience):
                answer = await future
        except TimeoutError:
            answer = ("left",)
            worker.leave(operation)
        operation.end = scene.world.time()
        operation.answer = answer
        scene.history.note(counter, str(operation))
        return operation


class Client(Asker):
    """Claims, with and without keys; tries again with the same key, and sometimes after it was answered, too."""

    def __init__(self, scene: Scene, name: str, draw: random.Random, wishes: random.Random) -> None:
        super().__init__(scene, name, draw)
        self._wishes = wishes

    async def run(self) -> None:
        plan = self.scene.plan
        left = plan.claims
        while left > 0:
            await asyncio.sleep(self.draw.expovariate(1 / plan.think))
            burst = min(left, self.draw.randint(1, plan.burst))
            left -= burst
            await asyncio.gather(*(self._claim(f"{self.name}-{left}-{index}") for index in range(burst)))

    async def _claim(self, order: str) -> None:
        draw, plan = self.draw, self.scene.plan
        counter = draw.choice(plan.counters)
        size = draw.choice(plan.sizes)
        hold, claimant = self._wish(counter)
        key = None
        if draw.random() < plan.keyed:
            key = order
            used = self.scene.orders.setdefault(counter, [])
            if used and draw.random() < plan.again:
                key, size, hold, claimant = draw.choice(used)
            else:
                used.append((order, size, hold, claimant))
        for attempt in range(3):
            worker = draw.choice(self.scene.workers)
            done = await self.ask("claim", counter, worker, plan.patience, size, key, hold=hold, claimant=claimant)
            if done.admitted and done.got[0]:
                self.scene.buy(done)
            if key is None or done.answer is None or done.answer[0] not in ("unavailable", "reset", "left"):
                return
            await asyncio.sleep(draw.random() * 0.3 * 2**attempt)

    def _wish(self, counter: str) -> tuple[int, str]:
        """For how many seconds a claim is on hold, and for whom it is."""
        draw, plan = self._wishes, self.scene.plan
        hold = draw.choice(plan.hold_seconds) if plan.held and draw.random() < plan.held else 0
        claimant = ""
        if plan.each.get(counter) and draw.random() < 0.97:
            claimant = f"a{draw.randint(1, plan.claimants)}"
        return hold, claimant


class Operator(Asker):
    """Changes and resets counters; insists or thinks again after a 503; deploys without looking."""

    def __init__(self, scene: Scene, name: str, draw: random.Random, rules: random.Random) -> None:
        super().__init__(scene, name, draw)
        self.rules = rules

    async def run(self) -> None:
        plan, draw = self.scene.plan, self.draw
        while not self.scene.ending:
            await asyncio.sleep(draw.expovariate(1 / plan.operates))
            lost = [name for name in plan.counters if self.scene.said_lost(name)]
            if lost and plan.repairs != "nothing" and draw.random() < 0.5:
                await self._say("deploy" if plan.repairs == "put" else "reset", draw.choice(lost))
            else:
                word = draw.choices(list(plan.words), list(plan.words.values()))[0]
                await self._say(word, draw.choice(plan.counters))

    async def _say(self, word: str, counter: str) -> None:
        draw, scene = self.draw, self.scene
        limit = self._limit(word, counter)
        rules = scene.rules(counter, limit, self.rules)
        kind = {"reset": "reset", "read": "read"}.get(word, "put")
        for _ in range(3):
            done = await self.ask(kind, counter, draw.choice(scene.workers), limit=limit, rules=rules)
            if done.answer is None or done.answer[0] not in ("unavailable", "reset") or draw.random() < 0.3:
                break
        if kind == "reset" and counter != "default":
            limit = scene.plan.limits[counter]
            rules = scene.rules(counter, limit)
            await self.ask("put", counter, draw.choice(scene.workers), limit=limit, rules=rules)

    def _limit(self, word: str, counter: str) -> int:
        scene, base = self.scene, self.scene.plan.limits[counter]
        highest = max(
            (op.answer[1] for op in scene.history.operations[-50:] if op.name == counter and op.admitted and op.answer),
            default=0,
        )
        if word == "raise":
            return base + self.draw.randint(1, 60)
        if word == "lower":
            return max(0, highest + self.draw.randint(-5, 5))
        return base
