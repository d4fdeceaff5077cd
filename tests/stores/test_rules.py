"""Every store does as the model does, whatever it is told and in whatever order: generated histories of one counter."""

from __future__ import annotations

import asyncio
import time
import uuid
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtests.rig.cluster import ClusterServers
from loadtests.rig.postgres import PostgresServer, postgres_programs
from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.waiting import PATIENCE
from pythonricing.counting.model import (
    LEASE_RETURN_SECONDS,
    RECEIPT_SECONDS,
    Batch,
    Counter,
    NoSuchCounter,
    NoSuchNumber,
    Rules,
    Run,
    Seen,
    StoreError,
    Verdict,
    Wish,
    Word,
)
from pythonricing.counting.rules import State, total
from pythonricing.stores import create_store
from pythonricing.stores.memory import MemoryStore
from pythonricing.stores.postgres.store import SCHEMA, PostgresStore
from pythonricing.stores.redis.store import RedisStore
from tests.simulation.redis import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pythonricing.counting.model import Action
    from pythonricing.counting.store import Store
    from pythonricing.settings import OnLoss
    from tests.simulation.redis import Session

NEVER, LONG_AGO = 2**53, 1
OLD_EPOCH, FIRST_EPOCH = 1, 1_700_000_000_000_000
#: Microseconds for which a lease may come back, and those which no step of a history takes on an idle machine.
RETURN, STEP = int(LEASE_RETURN_SECONDS * 1e6), 50_000


class View(NamedTuple):
    """What a worker has seen: one of the last states; or more, as if the store had fallen back to an older copy."""

    back: int
    epoch: Literal["old", "same", "later"]
    revisions: int
    numbers: int
    moved: int
    limit: int
    most: int
    deleted: bool
    each: int = 0
    every: str = ""
    resolved: int = 0


class Holding(NamedTuple):
    """What a worker does with the lease that it believes to have, and what it makes up."""

    #: Which part of its first run claims have got meanwhile, which part goes back, and whether all other runs do.
    used: Literal["none", "half", "all"]
    returned: Literal["none", "half", "all"]
    others: bool
    #: Whether it has forgotten what it still holds.
    forgets: bool
    #: What it gives back beside, and calls its own, and shouldn't.
    wrong: Literal["", "again", "of another worker", "never lent", "more than lent", "twice", "held too"]


class Step(NamedTuple):
    """Something that a worker or an operator tells a store."""

    act: Literal["claim", "read", "change", "restart", "configure", "delete", "resolve", "give back"]
    on_loss: OnLoss
    seen: View | None
    worker: str
    #: How many batches ago this one was sent first; 0: it is a new one.
    again: int
    #: Size and key of each, for how many seconds it is a hold, and for whom it is.
    claims: list[tuple[int, str | None] | tuple[int, str | None, int, str]]
    create: int | None
    #: Words of the same number and act are one word, sent again.
    word: int
    late: bool
    #: Below 0: so many less 1 above what was issued.
    limit: int | None
    most: int | None
    want: int
    holding: Holding
    each: int | None = None
    every: tuple[str, str] | None = None
    #: Which hold, the latest is 0; what to do with it, and how many numbers are confirmed.
    hold: int = 0
    action: Action = "confirm"
    number: int | None = None
    #: The numbers to give back: where the last one is, below what was issued, and how many; 0: from number 0 on.
    back: tuple[int, int] = (0, 1)
    #: Seconds that pass before it, where time can be told to.
    wait: float = 0.0


often = st.sampled_from
views = st.builds(
    View,
    back=often([0, 0, 0, 1, 2, 5]),
    epoch=often(["same"] * 6 + ["old", "later"]),
    revisions=often([0, 0, 0, 0, 1, 2, -1]),
    numbers=often([0, 0, 0, 0, 3, -1]),
    moved=often([0, 0, 0, 0, 2, -1]),
    limit=often([10, 20, 1000]),
    most=often([0, 0, 3]),
    deleted=often([False] * 5 + [True]),
    each=st.just(0),
    every=st.just(""),
    resolved=st.just(0),
)
holdings = st.builds(
    Holding,
    used=often(["none", "half", "half", "all"]),
    returned=often(["none", "none", "half", "half", "all"]),
    others=often([False, False, True]),
    forgets=often([False] * 7 + [True]),
    wrong=often([""] * 6 + ["again", "of another worker", "never lent", "more than lent", "twice", "held too"]),
)
steps = st.builds(
    Step,
    act=often(["claim"] * 6 + ["read", "change", "change", "restart", "configure", "delete"]),
    on_loss=often(["halt", "halt", "raise"]),
    seen=st.none() | views,
    worker=often(["v", "w"]),
    again=often([0, 0, 0, 1, 2]),
    claims=st.lists(st.tuples(often([1, 1, 2, 3, 5, 12]), often([None, None, "a", "b", "c"])), max_size=5),
    create=often([None, 10, 1000]),
    word=st.integers(0, 12),
    late=often([False] * 5 + [True]),
    limit=often([None, 0, 5, 10, 20, 300, 1000, 10_000, NEVER - 1]),
    most=often([None, None, 0, 2, 4]),
    want=often([0, 0, 5, 60, 500]),
    holding=holdings,
    each=st.none(),
    every=st.none(),
    hold=st.just(0),
    action=st.just("confirm"),
    number=st.none(),
    back=st.just((0, 1)),
    wait=st.just(0.0),
)


def busy(seen: st.SearchStrategy[View | None]) -> st.SearchStrategy[list[Step]]:
    """Histories in which leases meet: a counter with room for them, its numbers coming back in pieces."""
    first = st.builds(
        Step._replace,
        steps,
        act=st.just("restart"),
        limit=often([350, 1000, 10_000]),
        most=st.just(0),
        late=st.just(False),
        word=st.just(99),
    )
    further = st.builds(
        Step._replace,
        steps,
        act=often(["claim"] * 18 + ["change"] * 4 + ["read", "restart"]),
        seen=seen,
        again=often([0, 0, 0, 0, 0, 1]),
        claims=st.lists(
            st.tuples(often([1, 12, 12, 30, 60]), st.none() | often("abcdef") | often("ghijkl")), max_size=3
        ),
        limit=often([-1, -1, -3, 350, 1000, 10_000]),
        most=often([None, 0]),
        want=often([0, 0, 5, 60, 500]),
    )
    return st.builds(lambda begin, rest: [begin, *rest], first, st.lists(further, min_size=15, max_size=50))


#: What is renewed in histories that last for moments, and in those whose time is simulated.
SELDOM = [("", ""), ("1d", ""), ("day", "Europe/Berlin"), ("month", "")]
RENEWALS = [*SELDOM, ("1s", ""), ("90s", ""), ("1h", ""), ("day", "America/New_York")]


def sales(renewals: list[tuple[str, str]]) -> st.SearchStrategy[list[Step]]:
    """Histories with holds, claimants, give-backs and windows."""
    known = st.builds(
        View._replace,
        views,
        epoch=often(["same"] * 20 + ["old", "later"]),
        each=often([0, 0, 4]),
        every=often(["", "", "1h"]),
        resolved=often([0, 0, 0, 0, 1, -1]),
        revisions=often([0] * 9 + [1, -1]),
        numbers=often([0] * 9 + [3, -1]),
        moved=often([0] * 9 + [2, -1]),
        deleted=often([False] * 9 + [True]),
    )
    first = st.builds(
        Step._replace,
        steps,
        act=st.just("restart"),
        limit=often([10, 20, 350]),
        most=often([0, 0, 4]),
        each=often([0, 0, 5, 12]),
        every=often(renewals),
        late=st.just(False),
        word=st.just(99),
    )
    further = st.builds(
        Step._replace,
        steps,
        act=often(
            ["claim"] * 12 + ["resolve"] * 8 + ["give back"] * 4 + ["change"] * 4 + ["read", "restart", "delete"]
        ),
        seen=st.none() | st.none() | known,
        again=often([0] * 9 + [1]),
        claims=st.lists(
            st.tuples(
                often([1, 1, 2, 3, 5, 70]),
                st.none() | often("abc"),
                often([0, 0, 1, 5, 60, 3600]),
                often(["", "", "x", "x", "y"]),
            ),
            max_size=4,
        ),
        limit=often([None, -1, -3, 10, 20, 350]),
        most=often([None, 0]),
        each=often([None, None, 0, 5]),
        every=often([None, None, None, *renewals]),
        late=often([False] * 9 + [True]),
        word=st.integers(0, 30),
        hold=often([0, 0, 0, 1, 1, 2, 3, 5]),
        action=often(["confirm", "confirm", "release"]),
        number=often([None, None, 1, 2, 4]),
        back=st.tuples(often([0, 1, 1, 2, 3, 5, 70, -1]), often([1, 1, 2, 5, 70, 0])),
        wait=often([0.0, 0.0, 0.0, 0.2, 1.0, 7.0, 29.003, 4000.0, 90_000.0]),
    )
    # A store may forget a lease after an hour: nothing is lent where hours pass.
    quiet = st.builds(Step._replace, further, want=st.just(0))
    brief = st.builds(Step._replace, further, wait=often([0.0, 0.0, 0.0, 0.2, 1.0, 7.0]))
    rest = st.lists(quiet, min_size=15, max_size=60) | st.lists(brief, min_size=15, max_size=60)
    return st.builds(lambda begin, rest: [begin._replace(want=0), *rest], first, rest)


NOTHING = Holding("none", "none", False, False, "")
ALL = NOTHING._replace(returned="all")
WHOLE = NEVER - 1


def _steps(*told: tuple[Any, dict[str, Any]]) -> list[Step]:
    plain = Step("read", "halt", None, "w", 0, [], None, 0, False, None, None, 0, NOTHING)
    return [plain._replace(act=act, word=word, **more) for word, (act, more) in enumerate(told)]


def _held(size: int, seconds: int = 60, claimant: str = "") -> tuple[str, dict[str, Any]]:
    return "claim", {"claims": [(size, None, seconds, claimant)]}


def _seen(**more: Any) -> View:
    return View(0, "same", 0, 0, 0, 10, 0, False)._replace(**more)


READ: tuple[str, dict[str, Any]] = ("read", {})
#: What stores once took for something else than the model.
KNOWN: dict[str, list[Step]] = {
    "shares end with their epoch, also where there were no claimants meanwhile": _steps(
        ("restart", {"limit": 20, "each": 5}),
        _held(4, 0, "x"),
        ("change", {"each": 0}),
        ("change", {"each": 5}),
        _held(2, 0, "x"),
        ("restart", {}),
        _held(5, 0, "x"),
        _held(1, 0, "x"),
    ),
    "another renewal than that of the window which is over": _steps(
        ("restart", {"limit": 20, "every": ("day", "Europe/Berlin")}),
        ("change", {"every": ("month", ""), "wait": 90_000.0}),
        ("change", {"every": ("day", "America/New_York"), "wait": 40 * 86_400.0}),
        ("change", {"every": ("day", "Europe/Berlin"), "wait": 90_000.0}),
        ("claim", {"claims": [(1, None)], "wait": 90_000.0}),
    ),
    "number 0": _steps(
        ("restart", {"limit": 3}),
        ("claim", {"claims": [(3, None)]}),
        ("give back", {"back": (2, 0)}),
        ("claim", {"claims": [(1, None)]}),
    ),
    "held numbers are given back": _steps(
        ("restart", {"limit": 20, "every": ("1h", "")}),
        _held(4, 7200),
        ("give back", {"back": (1, 2)}),
        READ,
        ("resolve", {"number": 3}),
        ("resolve", {"number": 1, "wait": 7.0}),
        ("resolve", {"number": 1}),
        _held(70, 7200),
        _held(4, 7200),
        ("give back", {"back": (0, 1)}),
        ("resolve", {"wait": 4000.0}),
    ),
    "all numbers of a hold are given back": _steps(
        ("restart", {"limit": 200, "each": 80}),
        _held(70, 5, "x"),
        _held(70, 60, "y"),
        ("give back", {"back": (70, 70)}),
        READ,
        ("resolve", {"hold": 1}),
        ("give back", {"back": (0, 5), "wait": 7.0}),
        _held(80, 60, "x"),
        ("resolve", {"hold": 1, "wait": 100.0}),
        ("resolve", {"hold": 2, "wait": 86_400.0}),
    ),
    "a lease comes back without what was given back of it": _steps(
        ("restart", {"limit": 10_000}),
        ("claim", {"want": 100}),
        ("give back", {"back": (95, 1), "wait": 0.5}),
        ("claim", {"holding": ALL}),
        READ,
    ),
    "numbers end below 2^53": _steps(
        ("restart", {"limit": WHOLE}),
        ("claim", {"claims": [(WHOLE - 10, None)]}),
        ("give back", {"back": (0, 70)}),
        ("claim", {"claims": [(5, None), (6, None), (5, "a"), (1, "b")], "want": 500}),
        ("claim", {"claims": [(1, None), (1, "b")]}),
        READ,
    ),
    "many holds that were resolved are over": _steps(
        ("restart", {"limit": 200}),
        ("claim", {"claims": [(1, None, 60, "")] * 199 + [(1, None, 61, "")]}),
        *(("resolve", {"action": "release", "hold": hold}) for hold in range(1, 200)),
        ("claim", {"claims": [(1, None)], "wait": 62.0}),
    ),
    "a counter that was deleted comes back without its holds": _steps(
        ("restart", {"limit": 20}),
        _held(4),
        ("resolve", {}),
        ("delete", {}),
        ("read", {"on_loss": "raise", "seen": _seen(revisions=1)}),
        ("resolve", {}),
        _held(2),
        ("resolve", {}),
    ),
    "a counter that renewed knows when it began": _steps(
        ("restart", {"limit": 20, "every": ("1h", "")}),
        READ,
        ("read", {"wait": 4000.0}),
        ("change", {"every": ("", "")}),
        ("read", {"seen": _seen(back=3, resolved=1)}),
    ),
}


class Worker:
    """The lease that a worker believes to have."""

    def __init__(self) -> None:
        self.epoch = 0
        self.sequence = 0
        self.runs: list[Run] = []
        #: What it last gave back.
        self.returned: list[Run] = []

    def part(self, which: Literal["none", "half", "all"]) -> list[Run]:
        """Take a part of the first run out of what it holds."""
        if which == "none" or not self.runs:
            return []
        first, last = self.runs.pop(0)
        middle = last if which == "all" else (first + last) // 2
        if middle < last:
            self.runs.insert(0, (middle + 1, last))
        return [(first, middle)]


class Told:
    """A store, as a history unfolds on one of its counters."""

    def __init__(self, stores: dict[OnLoss, Store], name: str) -> None:
        self._stores = stores
        self._name = name
        self._sequence = 1
        self._seen: list[Seen] = []
        self._workers = {"v": Worker(), "w": Worker()}
        self._holds = 0
        self.epochs: set[int] = set()

    async def tell(self, step: Step) -> list[Any]:
        """What comes of a step, and how the counter is afterwards."""
        outcomes = [await self._outcome(self._act(step)), await self._outcome(self._stores["halt"].read(self._name))]
        state = outcomes[1]
        if isinstance(state, Counter):
            self._seen.append(state.seen)
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
        except (StoreError, NoSuchNumber) as error:
            return type(error)

    async def _act(self, step: Step) -> Any:
        store, seen = self._stores[step.on_loss], self._view(step.seen)
        word = Word(f"{step.act}-{step.word}", LONG_AGO if step.late else NEVER, seen)
        match step.act:
            case "claim":
                return await self._claim(step, seen)
            case "read":
                return await store.read(self._name, seen, step.create)
            case "delete":
                return await store.delete(self._name, word)
            case "resolve":
                id = f"hold-{self._holds - step.hold}"
                return await store.resolve(self._name, word, id, step.action, step.number)
            case "give back":
                last = max(1, (self._seen[-1].issued if self._seen else 0) - step.back[0])
                return await store.give_back(
                    self._name, word, [(max(1, last - step.back[1] + 1) if step.back[1] else 0, last)]
                )
            case how:
                limit = step.limit
                if limit is not None and limit < 0:
                    limit = (self._seen[-1].issued if self._seen else 0) - limit - 1
                every, zone = step.every if step.every is not None else (None, None)
                return await store.put(self._name, word, limit, Rules(step.most, step.each, every, zone), how)

    async def _claim(self, step: Step, seen: Seen | None) -> Verdict:
        self._sequence += not step.again
        sequence = max(1, self._sequence - step.again + bool(step.again))
        worker = self._workers[step.worker]
        back, held = self._lease(worker, step.holding) if sequence > worker.sequence else ([], [])
        sizes = [claim[0] for claim in step.claims]
        keys = [claim[1] for claim in step.claims]
        wishes = [self._wish(*claim[2:]) for claim in step.claims]
        batch = Batch(
            name=self._name,
            worker=step.worker,
            sequence=sequence,
            attempt=step.again,
            sizes=sizes,
            keys=keys if any(keys) else None,
            seen=seen,
            create=step.create,
            want=step.want,
            back=back,
            held=held,
            wishes=wishes if any(wishes) else None,
        )
        verdict = await self._stores[step.on_loss].claim(batch)
        if sequence > worker.sequence:
            if verdict.epoch != worker.epoch:
                worker.runs = []
            worker.sequence, worker.epoch = sequence, verdict.epoch
            worker.runs += verdict.lent
            if verdict.lent:
                worker.returned = []  # it may be its own again
            self.executed(verdict)
        return verdict

    def _wish(self, seconds: int = 0, claimant: str = "") -> Wish | None:
        if not (seconds or claimant):
            return None
        self._holds += seconds > 0
        return Wish(f"hold-{self._holds}" if seconds else "", seconds, claimant)

    def executed(self, verdict: Verdict) -> None:
        """A batch was executed just now."""

    def gave_back(self, epoch: int, runs: list[Run]) -> None:
        """A worker gives back what it was lent in this epoch and nobody has got."""

    def _lease(self, worker: Worker, holding: Holding) -> tuple[list[Run], list[Run]]:
        """What a worker gives back, and what it says that it holds."""
        worker.part(holding.used)
        back = worker.part(holding.returned)
        if holding.others:
            back, worker.runs = back + worker.runs[1:], worker.runs[:1]
        if holding.forgets:
            worker.runs = []
        self.gave_back(worker.epoch, back)
        other = next(each for each in self._workers.values() if each is not worker)
        held = list(worker.runs)
        match holding.wrong:
            case "again":
                back, held = back + worker.returned, held + worker.returned
            case "of another worker" if other.epoch == worker.epoch:
                back, held = back + other.runs, held + other.runs
            case "never lent":
                back, held = [(10**9, 10**9 + 3), *back], [(10**9, 10**9), *held]
            case "more than lent":
                held = held + [(max(1, first - 2), last + 2) for first, last in back]
            case "twice":
                back, held = back + back, held + held
            case "held too":
                held = held + back
        worker.returned = back[:2]
        return back, held

    def _view(self, view: View | None) -> Seen | None:
        if view is None:
            return None
        known = Seen(FIRST_EPOCH, 1, 4, 10)
        if self._seen:
            known = self._seen[-1 - view.back % len(self._seen)]
        epoch = {"old": OLD_EPOCH, "same": known.epoch, "later": max(self.epochs, default=FIRST_EPOCH) + 1}[view.epoch]
        self.epochs.add(epoch)
        if (view.epoch, view.revisions, view.numbers, view.moved, view.resolved) == ("same", 0, 0, 0, 0):
            return known
        revision = max(0, known.revision + view.revisions)
        if view.deleted:
            return Seen(epoch, revision, 0, 0, deleted=True)
        issued, moved = max(0, known.issued + view.numbers), max(0, known.moved + view.moved)
        limits = (view.limit, view.most, False, moved, view.each, view.every, "")
        ends = known.ends or (FIRST_EPOCH if view.every else 0)
        return Seen(epoch, revision, issued, *limits, ends if view.every else 0, max(0, known.resolved + view.resolved))

    def _comparable(self, outcome: Any) -> Any:
        """With the rank of the epoch for the epoch, which is a clock's time; and not what time it is.

        A store may tell an earlier second for the next hold that is due.
        """
        if isinstance(outcome, tuple):
            return tuple(self._comparable(each) for each in outcome)
        if isinstance(outcome, Seen | Counter | Verdict):
            self.epochs.add(outcome.epoch)
            if not isinstance(outcome, Seen):
                outcome = msgspec.structs.replace(outcome, now=outcome.now > 0, due=outcome.due > 0)
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


class Moment:
    """The time of a model, in microseconds; it stands still while a step is taken."""

    now = 0


class Model(MemoryStore):
    """A model that is told by each step what a loss does; its workers share one memory and one clock."""

    def __init__(self, on_loss: OnLoss, other: Model | None = None) -> None:
        super().__init__(on_loss)
        self.moment = Moment()
        if other is not None:
            self.__dict__.update({**other.__dict__, "_on_loss": on_loss})

    def _now(self) -> int:
        return self.moment.now

    def _seconds(self) -> float:
        return self.moment.now / 1e6

    def pass_time(self, seconds: float) -> None:
        """Let time pass; receipts are kept for an hour."""
        self.moment.now += round(seconds * 1e6)
        if seconds >= RECEIPT_SECONDS:
            self._receipts.clear()
            self._words.clear()

    def state(self, name: str) -> State | None:
        return self._states.get(name)


class Age:
    """Tells when it is certain whether a store waits for leases.

    A server has this machine's clock, but reads it some time during a step, so that a lease that comes to its age
    meanwhile may be waited for or not.
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        self._name = name
        self._ends: dict[int, int] = {}

    async def begin(self) -> None:
        """Begin a step, not just before a lease comes to its age, nor before a second is over, as holds count them."""
        while True:
            self._model.moment.now = now = time.time_ns() // 1000
            if not self._doubtful(now, now + STEP):
                return
            await asyncio.sleep(STEP / 1e6)

    def certain(self) -> bool:
        """End a step. Whether each lease was waited for all the time, or at no time."""
        now = time.time_ns() // 1000
        self._ends[self._model.moment.now] = now
        return not self._doubtful(self._model.moment.now, now)

    def _doubtful(self, first: int, last: int) -> bool:
        if first // 1_000_000 != last // 1_000_000:
            return True
        state = self._model.state(self._name)
        leases = state.leases.values() if state is not None else ()
        return any(last - lease.at >= RETURN > first - self._ends[lease.at] for lease in leases)


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
            age = Age(halting, name)
            for step in history:
                told = step if mixed else step._replace(on_loss=history[0].on_loss)
                await age.begin()
                did, should = await store.tell(told), await model.tell(told)
                if not age.certain():
                    break
                assert did == should, told
            else:
                await age.begin()
                did, should = await store.listed(), await model.listed()
                assert did == should or not age.certain()
            await store.forget()

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(history=st.lists(steps, min_size=15, max_size=50) | busy(st.none() | st.none() | views) | sales(SELDOM))
        def unfolds(history: list[Step]) -> None:
            runner.run(unfold(history))

        runner.run(connect())
        try:
            unfolds()
        finally:
            for store in stores.values():
                runner.run(store.close())


class Wire(asyncio.Transport):
    """A connection to a server whose time is simulated."""

    def __init__(self, session: Session, protocol: Any) -> None:
        super().__init__()
        self._session = session
        self._protocol = protocol
        self._open = True

    def write(self, data: Any) -> None:
        for command in self._session.feed(bytes(data)):
            asyncio.get_running_loop().call_soon(self._protocol.data_received, self._session.execute(command))

    def writelines(self, chunks: Any) -> None:
        self.write(b"".join(chunks))

    def is_closing(self) -> bool:
        return not self._open

    def close(self) -> None:
        if self._open:
            self._open = False
            self._protocol.connection_lost(None)

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=sales(RENEWALS))
def test_scripts_do_as_the_model_does_while_time_passes(history: list[Step]) -> None:
    _unfold_on_scripts(history)


@pytest.mark.parametrize("history", KNOWN.values(), ids=KNOWN)
def test_scripts_do_as_the_model_does(history: list[Step]) -> None:
    _unfold_on_scripts(history)


def _unfold_on_scripts(history: list[Step]) -> None:
    halting = Model("halt")
    moment = halting.moment
    moment.now = 1_767_225_600_000_000 + 1
    server = Server(lambda: moment.now)

    async def dial(factory: Any, _: Any) -> Any:
        protocol = factory()
        wire = Wire(server.connect(), protocol)
        protocol.connection_made(wire)
        return wire, protocol

    async def unfold() -> None:
        stores: dict[OnLoss, Store] = {
            each: RedisStore("redis://simulated", 20.0, on_loss=each, dial=dial) for each in ("halt", "raise")
        }
        for each in stores.values():
            await each.open()
            await each.ready()
        model, store = Told({"halt": halting, "raise": Model("raise", halting)}, "seats"), Told(stores, "seats")
        try:
            for step in history:
                halting.pass_time(step.wait)
                assert await store.tell(step) == await model.tell(step), step
            assert await store.listed() == await model.listed()
        finally:
            for each in stores.values():
                await each.close()

    asyncio.run(unfold())


#: A clock for PostgreSQL that stands still until it is told the time.
CLOCK = """
CREATE SCHEMA simulated;
CREATE TABLE simulated.clock AS SELECT now() AS moment;
CREATE FUNCTION simulated.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT moment FROM simulated.clock $$;
"""


@pytest.fixture(scope="module", params=postgres_programs(), ids=str)
def timed_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A PostgreSQL in which time is simulated."""
    server = PostgresServer(request.param, fsync="off").start()
    server.sql(CLOCK, "SELECT")
    server.sql(SCHEMA.replace("clock_timestamp()", "simulated.now()"), "SELECT")
    yield server
    server.stop()


def test_procedures_do_as_the_model_does_while_time_passes(timed_postgres: PostgresServer) -> None:
    with asyncio.Runner() as runner:
        stores: dict[OnLoss, Store] = {
            each: PostgresStore(timed_postgres.url, 20.0, on_loss=each) for each in ("halt", "raise")
        }
        clock: Any = None

        async def connect() -> None:
            nonlocal clock
            clock = await asyncpg.connect(timed_postgres.url)
            for store in stores.values():
                await store.open()
                await asyncio.wait_for(store.ready(), PATIENCE)

        async def unfold(history: list[Step]) -> None:
            halting = Model("halt")
            halting.moment.now = 1_767_225_600_000_000 + 1
            name = f"test-{uuid.uuid4().hex}"
            model, store = Told({"halt": halting, "raise": Model("raise", halting)}, name), Told(stores, name)
            for step in history:
                halting.pass_time(step.wait)
                moment = "timestamptz 'epoch' + make_interval(secs => $1) + make_interval(secs => $2 / 1e6)"
                seconds, rest = divmod(halting.moment.now, 1_000_000)
                await clock.execute(f"UPDATE simulated.clock SET moment = {moment}", seconds, rest)
                assert await store.tell(step) == await model.tell(step), step
            assert await store.listed() == await model.listed()
            await store.forget()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(history=sales(RENEWALS))
        def unfolds(history: list[Step]) -> None:
            runner.run(unfold(history))

        runner.run(connect())
        try:
            for history in KNOWN.values():
                runner.run(unfold(history))
            unfolds()
        finally:
            runner.run(clock.close())
            for store in stores.values():
                runner.run(store.close())


class Audited(Told):
    """A model whose numbers are counted apart from it, as long as it loses nothing."""

    def __init__(self, name: str) -> None:
        self.model = Model("halt")
        super().__init__({"halt": self.model, "raise": self.model}, name)
        self.taken: dict[int, set[int]] = {}

    def executed(self, verdict: Verdict) -> None:
        taken = self.taken.setdefault(verdict.epoch, set())
        for first, last in (*verdict.runs, *verdict.lent):
            assert taken.isdisjoint(range(first, last + 1)), "a number was given twice"
            taken.update(range(first, last + 1))
        if verdict.runs or verdict.lent:
            assert len(taken) <= verdict.limit
        assert verdict.lent == [] or len(taken) - total(verdict.lent) + 64 * total(verdict.lent) <= verdict.limit

    def gave_back(self, epoch: int, runs: list[Run]) -> None:
        state = self.model.state(self._name)
        if state is not None and epoch == state.epoch:
            for first, last in runs:
                self.taken[epoch].difference_update(range(first, last + 1))

    def audit(self, state: State) -> None:
        """The state agrees with what was given, and its runs lie apart."""
        taken = self.taken.get(state.epoch, set())
        free = {number for first, last in state.free for number in range(first, last + 1)}
        assert state.count == len(taken)
        assert free == set(range(1, state.issued + 1)) - taken
        held = [number for lease in state.leases.values() for first, last in lease.runs for number in (first, last)]
        assert taken.issuperset(held)
        for runs in (state.free, *(lease.runs for lease in state.leases.values())):
            assert all(first <= last for first, last in runs)
            assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=busy(st.none()))
def test_no_number_is_given_twice_unless_it_came_back(history: list[Step]) -> None:
    async def unfold() -> None:
        told = Audited("seats")
        for step in history:
            told.model.moment.now += RETURN // 3
            await told.tell(step)
            state = told.model.state("seats")
            assert state is not None
            told.audit(state)

    asyncio.run(unfold())
