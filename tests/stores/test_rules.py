"""Every store does as the model does, whatever it is told and in whatever order: generated histories of one counter."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtests.rig.cluster import ClusterServers
from loadtests.rig.postgres import PostgresServer, postgres_programs
from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.waiting import PATIENCE
from pythonricing.counting.model import Batch, Counter, NoSuchCounter, Seen, StoreError, Verdict, Word
from pythonricing.stores import create_store
from pythonricing.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pythonricing.counting.store import Store
    from pythonricing.settings import OnLoss

NEVER, LONG_AGO = 2**53, 1
OLD_EPOCH, FIRST_EPOCH = 1, 1_700_000_000_000_000


class View(NamedTuple):
    """What a worker has seen: one of the last states; or more, as if the store had fallen back to an older copy."""

    back: int
    epoch: Literal["old", "same", "later"]
    revisions: int
    numbers: int
    limit: int
    most: int
    deleted: bool


class Step(NamedTuple):
    """Something that a worker or an operator tells a store."""

    act: Literal["claim", "read", "change", "restart", "configure", "delete"]
    on_loss: OnLoss
    seen: View | None
    worker: str
    #: How many batches ago this one was sent first; 0: it is a new one.
    again: int
    claims: list[tuple[int, str | None]]
    create: int | None
    #: Words of the same number and act are one word, sent again.
    word: int
    late: bool
    limit: int | None
    most: int | None


often = st.sampled_from
views = st.builds(
    View,
    back=often([0, 0, 0, 1, 2, 5]),
    epoch=often(["same"] * 6 + ["old", "later"]),
    revisions=often([0, 0, 0, 0, 1, 2, -1]),
    numbers=often([0, 0, 0, 0, 3, -1]),
    limit=often([10, 20]),
    most=often([0, 0, 3]),
    deleted=often([False] * 5 + [True]),
)
steps = st.builds(
    Step,
    act=often(["claim"] * 6 + ["read", "change", "change", "restart", "configure", "delete"]),
    on_loss=often(["halt", "halt", "raise"]),
    seen=st.none() | views,
    worker=often(["v", "w"]),
    again=often([0, 0, 0, 1, 2]),
    claims=st.lists(st.tuples(often([1, 1, 2, 3, 5]), often([None, None, "a", "b", "c"])), max_size=5),
    create=often([None, None, 10]),
    word=st.integers(0, 12),
    late=often([False] * 5 + [True]),
    limit=often([None, 0, 5, 10, 20, NEVER - 1]),
    most=often([None, None, 0, 2, 4]),
)


class Told:
    """A store, as a history unfolds on one of its counters."""

    def __init__(self, stores: dict[OnLoss, Store], name: str) -> None:
        self._stores = stores
        self._name = name
        self._sequence = 1
        self._seen: list[Seen] = []
        self.epochs: set[int] = set()

    async def tell(self, step: Step) -> list[Any]:
        """What comes of a step, and how the counter is afterwards."""
        outcomes = [await self._outcome(self._act(step)), await self._outcome(self._stores["halt"].read(self._name))]
        state = outcomes[1]
        if isinstance(state, Counter):
            self._seen.append(Seen(state.epoch, state.revision, state.count, state.limit, state.most))
        elif isinstance(state, Seen):
            self._seen.append(state)
        return [self._comparable(outcome) for outcome in outcomes]

    async def listed(self) -> list[Any]:
        """The counter, as it is listed."""
        counters = await self._stores["halt"].browse(1000)
        return [self._comparable(counter) for counter in counters if counter.name == self._name]

    async def forget(self) -> None:
        """Leave nothing behind that would be listed."""
        store = self._stores["halt"]
        await store.put(self._name, Word("last but one", NEVER), 0, how="restart")
        await store.delete(self._name, Word("last", NEVER))

    async def _outcome(self, act: Any) -> Any:
        try:
            return await act
        except NoSuchCounter as error:
            return error.seen
        except StoreError as error:
            return type(error)

    async def _act(self, step: Step) -> Any:
        store, seen = self._stores[step.on_loss], self._view(step.seen)
        word = Word(f"{step.act}-{step.word}", LONG_AGO if step.late else NEVER, seen)
        match step.act:
            case "claim":
                self._sequence += not step.again
                sizes = [size for size, _ in step.claims]
                keys = [key for _, key in step.claims]
                batch = Batch(
                    name=self._name,
                    worker=step.worker,
                    sequence=max(1, self._sequence - step.again + bool(step.again)),
                    attempt=step.again,
                    sizes=sizes,
                    keys=keys if any(keys) else None,
                    seen=seen,
                    create=step.create,
                )
                return await store.claim(batch)
            case "read":
                return await store.read(self._name, seen, step.create)
            case "delete":
                return await store.delete(self._name, word)
            case how:
                return await store.put(self._name, word, step.limit, step.most, how)

    def _view(self, view: View | None) -> Seen | None:
        if view is None:
            return None
        known = Seen(FIRST_EPOCH, 1, 4, 10)
        if self._seen:
            known = self._seen[-1 - view.back % len(self._seen)]
        epoch = {"old": OLD_EPOCH, "same": known.epoch, "later": max(self.epochs, default=FIRST_EPOCH) + 1}[view.epoch]
        self.epochs.add(epoch)
        if (view.epoch, view.revisions, view.numbers) == ("same", 0, 0):
            return known
        revision = max(0, known.revision + view.revisions)
        if view.deleted:
            return Seen(epoch, revision, 0, 0, deleted=True)
        return Seen(epoch, revision, max(0, known.count + view.numbers), view.limit, view.most)

    def _comparable(self, outcome: Any) -> Any:
        """With the rank of the epoch for the epoch, which is a clock's time."""
        if isinstance(outcome, tuple):
            return tuple(self._comparable(each) for each in outcome)
        if isinstance(outcome, Seen | Counter | Verdict):
            self.epochs.add(outcome.epoch)
            return msgspec.structs.replace(outcome, epoch=sorted(self.epochs).index(outcome.epoch))
        return outcome


@pytest.fixture(
    scope="module",
    params=[*redis_programs(), *(f"cluster {program}" for program in redis_programs()), *postgres_programs()],
    ids=str,
)
def store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of each store in turn."""
    server: RedisServer | PostgresServer | ClusterServers
    if request.param in postgres_programs():
        server = PostgresServer(request.param, fsync="off").start()
    elif request.param.startswith("cluster "):
        program = request.param.removeprefix("cluster ")
        server = ClusterServers(tmp_path_factory.mktemp("store"), "--appendfsync", "no", program=program).start()
    else:
        server = RedisServer(tmp_path_factory.mktemp("store"), request.param, "--appendfsync", "no").start()
    yield server.url
    server.stop()


class Model(MemoryStore):
    """A model that is told by each step what a loss does; its workers share one memory."""

    def __init__(self, on_loss: OnLoss, other: MemoryStore | None = None) -> None:
        super().__init__(on_loss)
        if other is not None:
            self.__dict__.update({**other.__dict__, "_on_loss": on_loss})


@pytest.mark.parametrize("mixed", [False, True], ids=["one setting", "both settings"])
def test_a_store_does_as_the_model_does(store_url: str, mixed: bool) -> None:
    with asyncio.Runner() as runner:
        stores: dict[OnLoss, Store] = {each: create_store(store_url, 20.0, on_loss=each) for each in ("halt", "raise")}

        async def connect() -> None:
            for store in stores.values():
                await store.open()
                for number in range(64):  # whatever shard they are on
                    await asyncio.wait_for(store.ready(str(number)), PATIENCE)

        async def unfold(history: list[Step]) -> None:
            name = f"test-{uuid.uuid4().hex}"
            halting = Model("halt")
            model = Told({"halt": halting, "raise": Model("raise", halting)}, name)
            store = Told(stores, name)
            for step in history:
                told = step if mixed else step._replace(on_loss=history[0].on_loss)
                assert await store.tell(told) == await model.tell(told), told
            assert await store.listed() == await model.listed()
            await store.forget()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(history=st.lists(steps, min_size=15, max_size=50))
        def unfolds(history: list[Step]) -> None:
            runner.run(unfold(history))

        runner.run(connect())
        try:
            unfolds()
        finally:
            for store in stores.values():
                runner.run(store.close())
