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

from pythonricing.counting.lease import Lease
from pythonricing.counting.model import (
    DEFAULT,
    DEFAULT_LIMIT,
    LEASE_RETURN_SECONDS,
    LEASE_SECONDS,
    RECEIPT_SECONDS,
    REFUSED_KEY_SECONDS,
    TOMBSTONE_SECONDS,
    Answer,
    Batch,
    ClaimantMissing,
    ClaimantUnwanted,
    KeyReused,
    NoSuchCounter,
    Overloaded,
    StateLost,
    StoreRejected,
    StoreUnavailable,
    TooMany,
    ZoneUnknown,
)
from pythonricing.counting.rules import decide, newer, total

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pythonricing.counting.journal import Journal, Kind
    from pythonricing.counting.model import Run, Seen, Verdict, Wish
    from pythonricing.counting.store import Store

#: Claims in one batch; Redis executes nothing else meanwhile.
MAX_BATCH = 1024
#: Times in a row that a batch gives way to other work which brings no further claim.
YIELDS = 4
#: Seconds for which an unanswered batch is sent again.
RESEND_SECONDS = RECEIPT_SECONDS / 6
#: Seconds for which refusals from memory add up before the journal is told of them.
REFUSED_SECONDS = 0.1
#: Seconds for which admissions from leases add up before the journal is told of them: each timer wakes a worker that
#: may have nothing else to do, and with 16 of them on two CPUs that costs as much as a claim.
ADMITTED_SECONDS = 0.02
#: Seconds after which a claim that leases may make room for is sent again.
AGAIN_SECONDS = 0.02
#: Seconds after which a worker no longer trusts what it knows of a counter; tombstones live longer.
FORGET_SECONDS = TOMBSTONE_SECONDS / 7


class Claim(msgspec.Struct):
    """A claim that waits for its answer."""

    size: int
    key: str | None
    future: asyncio.Future[Answer]
    deadline: float
    #: What it asks for beside numbers.
    wish: Wish | None
    #: Returns once nobody waits for the answer any more; None when it has been asked.
    gone: Callable[[], Awaitable[None]] | None
    #: Until when it waits for leases that may make room for it; 0 before it was found that one might.
    until: float = 0.0


class Numbers:
    """What the admitted claims of a batch got, handed out one after the other."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = iter(runs)
        self._next, self._last = 1, 0

    def answer(self, size: int, limit: int) -> Answer:
        """The answer to an admitted claim of this size."""
        last = self._next + size - 1
        if last <= self._last:  # as a rule
            self._next = last + 1
            return Answer(True, last, limit)
        got: list[Run] = []
        while size:
            if self._next > self._last:
                self._next, self._last = next(self._runs)
            first = self._next
            self._next = min(self._last + 1, first + size)
            got.append((first, self._next - 1))
            size -= self._next - first
        return Answer(True, got[-1][1], limit, tuple(got) if len(got) > 1 else ())


class Worker:
    """What the lanes of a worker share."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        limit: int | None,
        timeout: float,
        halt_cache: float,
        max_waiting: int,
        lease: float,
        clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.journal = journal
        self.limit = limit
        self.timeout = timeout
        self.halt_cache = halt_cache
        self.max_waiting = max_waiting
        #: Seconds of its own demand that a lane takes ahead.
        self.lease = lease
        #: Monotonic, and read anew for each claim, unlike the loop's: it has to tell how long a worker was paused.
        self.clock = clock
        #: How often a connection to the store was lost.
        self.breaks = 0
        #: Lanes that have admissions to tell of.
        self.telling: list[Lane] = []
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

    def tell_later(self, lane: Lane) -> None:
        """Have the journal be told of a lane's admissions before long."""
        if not self.telling:
            self.loop.call_later(ADMITTED_SECONDS, self.tell)
        self.telling.append(lane)

    def tell(self) -> None:
        """Tell the journal of the admissions from leases."""
        telling, self.telling = self.telling, []
        for lane in telling:
            lane.tell_admitted()

    def create_with(self, name: str) -> int | None:
        """The limit with which a claim creates a counter; None: it doesn't."""
        if name != DEFAULT:
            return None
        return DEFAULT_LIMIT if self.limit is None else self.limit


class Lane:
    """What a worker knows of one counter, and its claims."""

    __slots__ = (
        "_again",
        "_ending",
        "_expected",
        "_given",
        "_halted",
        "_halted_by",
        "_halted_until",
        "_in_flight",
        "_leased",
        "_refused",
        "_renewing",
        "_returning",
        "_seen",
        "_seen_at",
        "_waiting",
        "_worker",
        "lease",
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
        self._halted: asyncio.Future[Answer] | None = None  # the refusal of a claim of one number
        self._halted_by: Verdict  # what it was told by
        self._halted_until = 0.0
        self._refused = 0  # from memory, and not told yet
        self.lease = Lease(worker.lease, worker.clock)
        self._leased = 0  # of which the journal was told
        self._given: list[tuple[int, int]] = []  # from the lease, and not told yet
        self._renewing = False  # whether the store is to be asked for more
        self._returning = False  # whether it is to be given something back
        self._ending: asyncio.TimerHandle | None = None
        self._again: list[Claim] = []  # that leases may make room for

    def claim(
        self, size: int, key: str | None, gone: Callable[[], Awaitable[None]] | None, wish: Wish | None = None
    ) -> asyncio.Future[Answer]:
        """See Counters.claim."""
        worker, lease = self._worker, self.lease
        if key is None and wish is None and lease.left and (number := lease.take(size)):
            future: asyncio.Future[Answer] = worker.loop.create_future()
            future.set_result(self._give(lease, number, size))
            return future
        now = worker.loop.time()
        if self._halted is not None and key is None:
            if now < self._halted_until and (wish is not None and wish.claimant != "") is (self._halted_by.each > 0):
                if self._refused == 0:
                    worker.loop.call_later(REFUSED_SECONDS, self.tell_refused)
                self._refused += 1
                if size == 1:
                    return self._halted
                future = worker.loop.create_future()
                future.set_result(_when(self._halted.result(), self._halted_by, size))
                return future
            if now >= self._halted_until:
                self._halted = None
        # Each counter may have at most as many as there is room left for: one that can't be served takes half, and
        # never what others need (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
        # Switches", IEEE/ACM Transactions on Networking 6(2), 1998).
        if len(self._waiting) >= worker.max_waiting - worker.pending:
            worker.journal.unavailable(self.name, 1)
            raise Overloaded("too many claims are waiting for the store")
        future = worker.loop.create_future()
        self._waiting.append(Claim(size, key, future, now + worker.timeout, wish, gone))
        worker.pending += 1
        self._start()
        return future

    def _give(self, lease: Lease, number: int, size: int) -> Answer:
        """Answer a claim from the lease; ask for more before it is empty."""
        if not self._given:
            self._worker.tell_later(self)
        self._given.append((number, size))
        if lease.left <= lease.low and not self._renewing:
            self._renewing = True
            self._start()
        return Answer(True, number, lease.limit)

    def _start(self) -> None:
        if self.task is None:
            self._worker.busy[self] = None
            self.task = self._worker.loop.create_task(self._drain())
            self._worker.began()

    def end_lease(self) -> None:
        """Give back what was lent."""
        self.lease.end()
        self._tell_leased()
        self._return()

    def _return(self) -> None:
        if self.lease.back:
            self._returning = True
            self._start()

    def _look_after_lease(self) -> None:
        """Give back what has not been used in its time."""
        self._ending = None
        self.lease.expire()
        self._tell_leased()
        self._return()
        if self.lease.left and self.task is None:
            self._ending = self._worker.loop.call_later(LEASE_SECONDS, self._look_after_lease)

    @property
    def idle(self) -> bool:
        """Whether nothing is lost with it but what was seen."""
        return self.task is None and not self.lost and not self.lease.left and not self.lease.back

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for an answer."""
        return any(not claim.future.done() for claim in chain(self._in_flight, self._waiting))

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
        self.lease.see((self._seen.epoch, self._seen.revision))
        self._tell_leased()
        self._seen_at = self._worker.loop.time()
        if self.lost:
            self.lost = False
            self._worker.journal.found(self.name)

    def lose(self) -> None:
        """The store no longer has what was seen."""
        self.lease.drop()
        self._tell_leased()
        if not self.lost:
            self.lost = True
            self._worker.journal.lost(self.name, self._seen)

    def miss(self, error: NoSuchCounter) -> None:
        """There is no such counter: if it was deleted, remember that, or else forget the lane."""
        worker, deletion = self._worker, error.seen
        self._halted = None
        if deletion and self._seen and (deletion.epoch, deletion.revision) < (self._seen.epoch, self._seen.revision):
            return  # an answer from before the counter came back; what was lent since is the new one's
        self.lease.drop()
        self._tell_leased()
        if deletion is not None:
            self.see(deletion)
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

    def tell_admitted(self) -> None:
        """Tell the journal of the admissions from the lease."""
        given, self._given = self._given, []
        self.lease.used(len(given), sum(size for _, size in given))
        self._worker.journal.settled(self.name, self.lease.limit, given, 0)
        self._tell_leased()

    def _tell_leased(self) -> None:
        """Tell the journal how many numbers are held now."""
        if self.lease.left != self._leased:
            self._leased = self.lease.left
            self._worker.journal.leased(self.name, self._leased)

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
            while self._waiting or self._renewing or self._returning:
                if self.name == DEFAULT and not worker.configured.is_set():
                    await worker.configured.wait()
                await worker.store.ready(self.name)
                if 0 < len(self._waiting) < self._expected:
                    await self._gather()
                self._board()
                want = self.lease.want() if self._in_flight or self._renewing else 0
                self._renewing = self._returning = False
                if not (self._in_flight or want or self.lease.back):
                    continue
                try:
                    composition, verdict = await self._send(want)
                    self._expected = min(MAX_BATCH, (len(self._in_flight) + len(self._waiting)) * 3 // 4)
                    self._settle(composition, verdict)
                except Exception as error:
                    self._fail(error)
                worker.pending -= len(self._in_flight)
                self._in_flight = []
                if self._again:
                    await self._wait_for_leases()
                self._serve()
        finally:
            self.task = None
            self._tell_leased()
            worker.busy.pop(self, None)
            if self.name in worker.lanes:
                worker.lanes.move_to_end(self.name)
            if self._ending is None and (self.lease.left or self.lease.back):
                self._ending = worker.loop.call_later(LEASE_SECONDS, self._look_after_lease)

    def _serve(self) -> None:
        """Answer the claims that came meanwhile from the lease, as far as it goes."""
        while self._waiting and self.lease.left:
            claim = self._waiting[0]
            if not claim.future.done():
                number = 0 if claim.key is not None or claim.wish is not None else self.lease.take(claim.size)
                if not number:
                    return
                claim.future.set_result(self._give(self.lease, number, claim.size))
            self._waiting.popleft()
            self._worker.pending -= 1

    async def _wait_for_leases(self) -> None:
        """Let the claims that leases may make room for wait a moment; the lease of this worker is one of them."""
        self.lease.end()
        self._waiting.extendleft(reversed(self._again))
        self._worker.pending += len(self._again)
        self._again = []
        await asyncio.sleep(random.uniform(AGAIN_SECONDS / 2, AGAIN_SECONDS))

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

    async def _send(self, want: int) -> tuple[list[Claim], Verdict]:
        """Send the batch, and the wish for a lease, until the store says what became of it.

        Returns the claims that the verdict is about. Each time it is sent again, claims given up meanwhile stay
        behind: unless an earlier composition was executed already, nobody's numbers are spent on them.
        """
        worker = self._worker
        # Kept for the repeats: other counters' batches take further numbers while this one is on its way.
        worker.sequence = sequence = worker.sequence + 1
        compositions = [self._in_flight]
        kind: Kind = "claims" if self._in_flight else "lease" if want else "return"
        lease, breaks, asked = self.lease, worker.breaks, worker.clock()
        lease.expire()
        # The same in each repeat, whatever is used or ends meanwhile.
        held, back = lease.held(), lease.back
        lease.back = []
        give_up = worker.loop.time() + RESEND_SECONDS
        failures = 0
        while True:
            claims = compositions[-1]
            keys, wishes = [claim.key for claim in claims], [claim.wish for claim in claims]
            batch = Batch(
                self.name,
                worker.id,
                sequence,
                len(compositions) - 1,
                [claim.size for claim in claims],
                keys if any(keys) else None,
                self.known(),
                worker.create_with(self.name) if claims else None,
                want,
                back,
                held,
                wishes if any(wishes) else None,
            )
            sent = worker.loop.time()
            try:
                verdict = await worker.store.claim(batch)
                worker.journal.answered(self.name, len(claims), worker.loop.time() - sent, kind)
                if verdict.lent:
                    lease.add(verdict, asked + LEASE_SECONDS)
                    if lease.stopped or worker.breaks != breaks:
                        lease.end()
                        self._returning = True
                    self._tell_leased()
                return compositions[verdict.attempt], verdict
            except StoreRejected:
                if failures == 0:
                    lease.back = back + lease.back
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
        replays, numbers, capped = iter(verdict.replays), Numbers(verdict.runs), verdict.capped and set(verdict.capped)
        admitted: list[tuple[int, int]] = []
        orphaned: list[tuple[int, int]] = []
        scattered: list[tuple[Run, ...]] = []
        refused = 0
        # Each command gives numbers of such holds back: they are waited for as long as there are some.
        expiring = 0 < verdict.due <= verdict.now // 1_000_000
        for place, claim in enumerate(claims):
            future, size, wish = claim.future, claim.size, claim.wish
            given_up = future.done()
            replay = None if claim.key is None else next(replays)
            try:
                answer = decide(count, limit, size, most, replay, wish, verdict.each, place in capped)
            except (KeyReused, TooMany, ClaimantMissing, ClaimantUnwanted) as error:
                if not given_up:
                    future.set_exception(error)
                continue
            if replay is None:
                count = answer.request_count
                if answer.admitted:
                    answer = numbers.answer(size, limit)
                    (orphaned if given_up else admitted).append((answer.request_count, size))
                    if answer.numbers:
                        scattered.append(answer.numbers)
                    if wish is not None and wish.hold:
                        expires = verdict.now // 1_000_000 + wish.seconds + 1
                        answer = msgspec.structs.replace(answer, hold=wish.hold, expires=expires)
                    elif claim.key is None and wish is None:
                        self.lease.used(1, size)
                elif not given_up:
                    room = count - verdict.out + size <= limit
                    if expiring:
                        claim.until = 0.0
                    if room and not answer.capped and self._may_wait(claim):
                        self._again.append(claim)
                        continue
                    refused += 1
            if not answer.admitted and (replay is not None or verdict.each or verdict.ends or verdict.due):
                answer = _when(answer, verdict, size, replay is not None)
            if not given_up:
                future.set_result(answer)
        self.see(verdict.seen)
        if verdict.expired:
            worker.journal.expired(self.name, verdict.expired)
        if verdict.raised is not None:
            worker.journal.raised(self.name, verdict.raised, verdict.before)
        if count >= limit and worker.halt_cache and not verdict.out:
            self._halted = worker.loop.create_future()
            self._halted.set_result(_when(Answer(False, count, limit), verdict, 1))
            self._halted_by = verdict
            self._halted_until = worker.loop.time() + worker.halt_cache
        if scattered:
            worker.journal.scattered(self.name, scattered)
        if admitted or refused:
            worker.journal.settled(self.name, limit, admitted, refused)
        if orphaned:
            worker.journal.orphaned(self.name, limit, orphaned)

    def _may_wait(self, claim: Claim) -> bool:
        """Whether a claim waits for leases to come back: for a while, from the first time on."""
        now = self._worker.clock()
        if not claim.until:
            claim.until = now + LEASE_RETURN_SECONDS
        return now < claim.until

    def _fail(self, error: Exception) -> None:
        """Tell the claims of a batch why there is no verdict."""
        worker = self._worker
        unanswered = [claim.future for claim in self._in_flight if not claim.future.done()]
        if isinstance(error, NoSuchCounter):
            self.miss(error)
        else:
            if unanswered:
                worker.journal.unavailable(self.name, len(unanswered))
            if isinstance(error, StateLost):
                self.lose()
            elif not isinstance(error, StoreUnavailable):
                worker.journal.failed(self.name, error)
                told = "" if isinstance(error, ZoneUnknown) else "the store answered with an error: "
                error = StoreUnavailable(f"{told}{error}")
        for future in unanswered:
            future.set_exception(type(error)(*error.args))


def _when(refusal: Answer, verdict: Verdict, size: int, remembered: bool = False) -> Answer:
    """The refusal of a claim of this size with when waiting may help, and how many one claimant may have.

    Whose the holds are that may expire isn't known here: where a claimant's share refuses, only a renewal surely helps.
    """
    limit, each, capped = verdict.limit, verdict.each, refusal.capped
    resets = max(0.001, (verdict.ends - verdict.now) / 1e6) if verdict.ends else 0.0
    again = resets if size <= (each if capped else limit) else 0.0
    taken = verdict.before + total(verdict.runs)
    if verdict.due and not capped and taken - verdict.held + size <= limit:
        due = max(0.001, verdict.due - verdict.now / 1e6)
        if remembered:  # until it is forgotten, the key gets this refusal again
            due = max(due, REFUSED_KEY_SECONDS)
        again = min(again or due, due)
    elif remembered and not capped and taken + size <= limit:
        again = REFUSED_KEY_SECONDS
    return msgspec.structs.replace(refusal, each=each, resets=resets, retry_after=again)
