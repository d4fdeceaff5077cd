"""One counter as a worker serves it: claims gather into batches, batches become verdicts, verdicts become answers.

At most one batch of a counter is on its way from a worker. Claims that arrive meanwhile form the next one, so that
batches grow with load and nobody waits for a timer (group commit: DeWitt et al., "Implementation Techniques for Main
Memory Database Systems", SIGMOD 1984). Under load a batch also gives way to the event loop for a moment, for the
claims that the last answers have set free (see Lane._gather).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import OrderedDict, deque
from itertools import chain
from typing import TYPE_CHECKING, NoReturn

import msgspec

from pythonricing.counting.model import (
    DEFAULT,
    DEFAULT_LIMIT,
    RECEIPT_SECONDS,
    TOMBSTONE_SECONDS,
    Answer,
    Batch,
    KeyReused,
    NoSuchCounter,
    Overloaded,
    Seen,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    TooMany,
)
from pythonricing.counting.rules import decide, newer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pythonricing.counting.journal import Journal
    from pythonricing.counting.model import Verdict
    from pythonricing.counting.store import Store

#: Claims in one batch; Redis executes nothing else meanwhile.
MAX_BATCH = 1024
#: Times in a row that a batch gives way to other work which brings no further claim.
YIELDS = 4
#: Seconds for which an unanswered batch is sent again.
RESEND_SECONDS = RECEIPT_SECONDS / 6
#: Seconds for which refusals from memory add up before the journal is told of them.
REFUSED_SECONDS = 0.1
#: Seconds after which a worker no longer trusts what it knows of a counter; tombstones live longer.
FORGET_SECONDS = TOMBSTONE_SECONDS / 7


class Claim(msgspec.Struct):
    """A claim that waits for its answer."""

    size: int
    key: str | None
    future: asyncio.Future[Answer]
    deadline: float
    #: Returns once nobody waits for the answer any more; None when it has been asked.
    gone: Callable[[], Awaitable[None]] | None


class Worker:
    """What the lanes of a worker share."""

    def __init__(
        self, store: Store, journal: Journal, limit: int | None, timeout: float, halt_cache: float, max_waiting: int
    ) -> None:
        self.store = store
        self.journal = journal
        self.limit = limit
        self.timeout = timeout
        self.halt_cache = halt_cache
        self.max_waiting = max_waiting
        #: The one used longest ago first.
        self.lanes: OrderedDict[str, Lane] = OrderedDict()
        #: Those whose claims wait for the store.
        self.busy: dict[Lane, None] = {}  # in order, so that what is drawn from a seed is repeated exactly
        #: Claims that wait for the store.
        self.pending = 0
        #: Of the worker's last batch, whichever counter it was about: a lane may be forgotten, a receipt is not.
        self.sequence = 0
        self.id = ""
        self.loop: asyncio.AbstractEventLoop
        #: Whether `default` has the limit of the settings.
        self.configured = asyncio.Event()
        self.began: Callable[[], None]

    def create_with(self, name: str) -> int | None:
        """The limit with which a claim creates a counter; None: it doesn't."""
        if name != DEFAULT:
            return None
        return DEFAULT_LIMIT if self.limit is None else self.limit


class Lane:
    """What a worker knows of one counter, and its claims."""

    __slots__ = (
        "_expected",
        "_halted",
        "_halted_until",
        "_in_flight",
        "_refused",
        "_seen",
        "_seen_at",
        "_waiting",
        "_worker",
        "lost",
        "name",
        "task",
    )

    def __init__(self, name: str, worker: Worker) -> None:
        self.name = name
        #: Whether the store has lost what the counter had counted, as far as is known here.
        self.lost = False
        #: Sends the claims that wait.
        self.task: asyncio.Task[None] | None = None
        self._worker = worker
        self._waiting: deque[Claim] = deque()
        self._in_flight: list[Claim] = []
        self._expected = 0  # claims for which a batch gives way
        self._seen: Seen | None = None
        self._seen_at = 0.0
        self._halted: asyncio.Future[Answer] | None = None  # the refusal
        self._halted_until = 0.0
        self._refused = 0  # from memory, and not told yet

    def claim(self, size: int, key: str | None, gone: Callable[[], Awaitable[None]] | None) -> asyncio.Future[Answer]:
        """See Counters.claim."""
        worker = self._worker
        now = worker.loop.time()
        if self._halted is not None and key is None:
            if now < self._halted_until:
                if self._refused == 0:
                    worker.loop.call_later(REFUSED_SECONDS, self.tell_refused)
                self._refused += 1
                return self._halted
            self._halted = None
        # Each counter may have at most as many as there is room left for: one that can't be served takes half, and
        # never what others need (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
        # Switches", IEEE/ACM Transactions on Networking 6(2), 1998).
        if len(self._waiting) >= worker.max_waiting - worker.pending:
            worker.journal.unavailable(self.name, 1)
            raise Overloaded("too many claims are waiting for the store")
        future: asyncio.Future[Answer] = worker.loop.create_future()
        self._waiting.append(Claim(size, key, future, now + worker.timeout, gone))
        worker.pending += 1
        if self.task is None:
            worker.busy[self] = None
            self.task = worker.loop.create_task(self._drain())
            worker.began()
        return future

    @property
    def in_flight(self) -> int:
        """Claims in the batch that is on its way."""
        return len(self._in_flight)

    @property
    def seen_at(self) -> float:
        """When the counter was last seen, on the loop's clock; 0 if never."""
        return self._seen_at if self._seen is not None else 0.0

    def known(self) -> Seen | None:
        """What the store is told of what was seen."""
        if self._worker.loop.time() - self._seen_at > FORGET_SECONDS:
            return None
        return self._seen

    def see(self, seen: Seen) -> None:
        """Remember the newest state of the counter; an older one comes from a receipt."""
        self._seen = newer(self._seen, seen)
        self._seen_at = self._worker.loop.time()
        if self.lost:
            self.lost = False
            self._worker.journal.found(self.name)

    def lose(self) -> None:
        """The store no longer has what was seen."""
        if not self.lost:
            self.lost = True
            self._worker.journal.lost(self.name, self._seen)

    def miss(self, error: NoSuchCounter) -> None:
        """There is no such counter: if it was deleted, remember that, or else forget the lane."""
        worker = self._worker
        self._halted = None
        if error.seen is not None:
            self.see(error.seen)
        elif worker.lanes.get(self.name) is self and not self._waiting:
            del worker.lanes[self.name]

    def unhalt(self) -> None:
        """An operator has spoken: ask the store again before anything is refused."""
        self._halted = None

    def tell_refused(self) -> None:
        """Tell the journal of the refusals from memory."""
        if self._refused:
            refused, self._refused = self._refused, 0
            self._worker.journal.refused(self.name, refused)

    def expire(self, now: float) -> float | None:
        """Give up the claims that have waited too long. Returns when the next one will have, None if none waits."""
        given_up = 0
        for claim in self._in_flight:
            if not claim.future.done() and claim.deadline <= now:
                claim.future.set_exception(StoreUnavailable("the store did not answer in time"))
                given_up += 1
        while self._waiting and self._waiting[0].deadline <= now:
            claim = self._waiting.popleft()
            self._worker.pending -= 1
            if not claim.future.done():
                claim.future.set_exception(StoreUnavailable("the store did not answer in time"))
                given_up += 1
        if given_up:
            self._worker.journal.unavailable(self.name, given_up)
        left = chain(self._in_flight, self._waiting)
        return min((claim.deadline for claim in left if not claim.future.done()), default=None)

    def ask_gone(self, deadline: float) -> list[asyncio.Task[None]]:
        """Ask whether the clients of claims with at most this deadline, which have waited for a while, still wait."""
        asked = []
        for claim in chain(self._in_flight, self._waiting):
            if claim.deadline > deadline:
                break
            if claim.gone is not None and not claim.future.done():
                asked.append(self._worker.loop.create_task(self._give_up_without(claim.gone, claim.future)))
                claim.gone = None
        return asked

    async def _give_up_without(self, gone: Callable[[], Awaitable[None]], future: asyncio.Future[Answer]) -> None:
        await gone()
        if not future.done():
            future.set_exception(StoreUnavailable("the client left before the store answered"))

    async def _drain(self) -> None:
        """Send the claims, batch after batch, until none waits."""
        worker = self._worker
        try:
            while self._waiting:
                if self.name == DEFAULT and not worker.configured.is_set():
                    await worker.configured.wait()
                await worker.store.ready(self.name)
                if len(self._waiting) < self._expected:
                    await self._gather()
                self._board()
                if not self._in_flight:
                    continue
                try:
                    composition, verdict = await self._send()
                    self._expected = min(MAX_BATCH, (len(self._in_flight) + len(self._waiting)) * 3 // 4)
                    self._settle(composition, verdict)
                except Exception as error:
                    self._fail(error)
                worker.pending -= len(self._in_flight)
                self._in_flight = []
        finally:
            self.task = None
            worker.busy.pop(self, None)
            if self.name in worker.lanes:
                worker.lanes.move_to_end(self.name)

    async def _gather(self) -> None:
        """Give way to the event loop and to the machine's other processes while that brings further claims.

        Clients that were just answered come back with their next claims in moments. Sent at once, the claims that
        waited would leave without them, and two half batches would take turns where one whole batch costs half: giving
        way halves the store's commands (187 -> 90 for 1,000 claims at 32 connections). So up to three quarters of as
        many as there lately were are waited for: not for any time, but only while giving way, which takes microseconds
        when nothing else is to be done, still brings some.
        """
        yields = YIELDS
        while yields and (waiting := len(self._waiting)) < self._expected:
            os.sched_yield()
            await asyncio.sleep(0)
            yields = YIELDS if len(self._waiting) > waiting else yields - 1

    def _board(self) -> None:
        """Take the next batch from the claims that wait, without those that were given up."""
        while self._waiting and len(self._in_flight) < MAX_BATCH:
            claim = self._waiting.popleft()
            if claim.future.done():
                self._worker.pending -= 1
            else:
                self._in_flight.append(claim)

    async def _send(self) -> tuple[list[Claim], Verdict]:
        """Send the batch until the store says what became of it.

        Returns the claims that the verdict is about. Each time it is sent again, claims given up meanwhile stay
        behind: unless an earlier composition was executed already, nobody's numbers are spent on them.
        """
        worker = self._worker
        # Kept for the repeats: other counters' batches take further numbers while this one is on its way.
        worker.sequence = sequence = worker.sequence + 1
        compositions = [self._in_flight]
        give_up = worker.loop.time() + RESEND_SECONDS
        failures = 0
        while True:
            claims = compositions[-1]
            batch = Batch(
                self.name,
                worker.id,
                sequence,
                len(compositions) - 1,
                [claim.size for claim in claims],
                [claim.key for claim in claims] if any(claim.key is not None for claim in claims) else None,
                self.known(),
                worker.create_with(self.name),
            )
            sent = worker.loop.time()
            try:
                verdict = await worker.store.claim(batch)
                worker.journal.answered(self.name, len(claims), worker.loop.time() - sent)
                return compositions[verdict.attempt], verdict
            except StoreRejected:
                if failures == 0:
                    raise
                # Nothing was executed now, but an earlier attempt may have been.
            except StoreUnavailable:
                pass
            if worker.loop.time() > give_up:
                self._give_up(claims)
            if failures:
                ceiling = min(0.02 * 2**failures, 0.1)  # the store's own link backs off further
                await asyncio.sleep(random.uniform(ceiling / 2, ceiling))
            failures += 1
            await worker.store.ready(self.name)  # however long that takes
            if worker.loop.time() > give_up:
                self._give_up(claims)
            left = [claim for claim in claims if not claim.future.done()]
            compositions.append(left)

    def _give_up(self, claims: list[Claim]) -> NoReturn:
        """Stop sending a batch: before long the store will have forgotten whether it was executed."""
        self._worker.journal.in_doubt(self.name, len(claims))
        raise StoreUnavailable("the store did not answer")

    def _settle(self, claims: list[Claim], verdict: Verdict) -> None:
        """Answer the claims of a batch: the same greedy grant that the store made (see Verdict)."""
        worker = self._worker
        count, limit, most = verdict.before, verdict.limit, verdict.most
        replays = iter(verdict.replays)
        admitted: list[tuple[int, int]] = []
        orphaned: list[tuple[int, int]] = []
        refused = 0
        for claim in claims:
            future, size = claim.future, claim.size
            given_up = future.done()
            replay = None if claim.key is None else next(replays)
            try:
                answer = decide(count, limit, size, most, replay)
            except (KeyReused, TooMany) as error:
                if not given_up:
                    future.set_exception(error)
                continue
            if replay is None:
                count = answer.request_count
                if answer.admitted:
                    (orphaned if given_up else admitted).append((count, size))
                elif not given_up:
                    refused += 1
            if not given_up:
                future.set_result(answer)
        self.see(Seen(verdict.epoch, verdict.revision, count, limit, most))
        if verdict.raised is not None:
            worker.journal.raised(self.name, verdict.raised, verdict.before)
        if count >= limit and worker.halt_cache:
            self._halted = worker.loop.create_future()
            self._halted.set_result(Answer(False, count, limit))
            self._halted_until = worker.loop.time() + worker.halt_cache
        if admitted or refused:
            worker.journal.settled(self.name, limit, admitted, refused)
        if orphaned:
            worker.journal.orphaned(self.name, limit, orphaned)

    def _fail(self, error: Exception) -> None:
        """Tell the claims of a batch why there is no verdict."""
        worker = self._worker
        unanswered = [claim.future for claim in self._in_flight if not claim.future.done()]
        if isinstance(error, NoSuchCounter):
            self.miss(error)
        else:
            worker.journal.unavailable(self.name, len(unanswered))
            if isinstance(error, StateLost):
                self.lose()
            elif not isinstance(error, StoreUnavailable):
                worker.journal.failed(self.name, error)
                error = StoreUnavailable(f"the store answered with an error: {error}")
        for future in unanswered:
            future.set_exception(type(error)(*error.args))
