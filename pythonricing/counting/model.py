"""What counters, claims, batches and verdicts are, and what can go wrong with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a counter may be called: not `.` or `..`, because clients make `/counters/..` into `/`, which claims.
NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
DEFAULT = "default"
#: The limit of a new `default` when the settings give none.
DEFAULT_LIMIT = 100
#: Seconds for which a store remembers a worker's last batch. Workers stop sending a batch again long before.
RECEIPT_SECONDS = 3600
#: Seconds for which a store remembers the first answer to an idempotency key: an admission, of which there are at most
#: as many as the limit, and a refusal, of which there may be any number.
KEY_SECONDS, REFUSED_KEY_SECONDS = 86_400, 60
#: Seconds for which a store remembers that a counter was deleted, so that its absence is no loss of data.
TOMBSTONE_SECONDS = 7 * 86_400


#: Seconds for which a run of a lease is used, from the moment when it was asked for.
LEASE_SECONDS = 0.1
#: Seconds after which a lease is no longer waited for: it was used up, or its worker is gone.
LEASE_RETURN_SECONDS = 0.3
#: Seconds for which a hold may be asked, at most; and those for which a store remembers how one was resolved.
MAX_HOLD_SECONDS, RESOLVED_SECONDS = 86_400, 86_400
#: Numbers of a claim with a hold or for a claimant, and of one give-back, at most: each of them is noted somewhere.
MAX_NUMBERS = 1024
#: Holds that a command may expire or forget, at most; those that are left come with the next one.
MAX_DUE = 128
#: Times that a read is repeated, at most, as long as it leaves holds that have expired.
MAX_REREAD = 64
#: Who a claim may be for.
CLAIMANT = re.compile(r"[!-~]{1,128}")
#: The id of a hold: so many random bytes as base64 without padding.
HOLD_BYTES = 16
HOLD = re.compile(rf"[A-Za-z0-9_-]{{{-(-HOLD_BYTES * 8 // 6)}}}")
#: The first and the last number of a run of numbers.
Run = tuple[int, int]


class StoreError(Exception):
    """Something kept a store from doing its work."""


class StoreURLError(StoreError):
    """The store's URL can't be used. Its text is one line for the operator."""


class StoreUnavailable(StoreError):
    """No answer came. A batch may have been executed or not: sending the same batch again settles it."""


class StoreRejected(StoreError):
    """The store answered with an error and executed nothing."""


class ZoneUnknown(StoreRejected):
    """A counter's window is over, and the next one is of a time zone that this machine doesn't know: the argument."""

    def __str__(self) -> str:
        return f"this machine knows no time zone {self.args[0]!r}: its time-zone data lacks it"


class NoSuchCounter(StoreError):
    """There is no counter of this name, and none was lost. `seen` is its deletion, if the store remembers one."""

    def __init__(self, name: str, seen: Seen | None = None) -> None:
        super().__init__(name, seen)
        self.seen = seen

    def __str__(self) -> str:
        return f"there is no counter {self.args[0]}"


class StateLost(StoreError):
    """The store's data is gone or older than what a worker has seen; counting on would oversell."""

    def __str__(self) -> str:
        return f"the store has lost what counter {self.args[0]} had counted; an operator must set or reset it"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a claim got: the numbers `request_count - n + 1` to `request_count`, or those of `numbers`.

    Where it is refused, `request_count` is how many are taken.
    """

    admitted: bool
    request_count: int
    limit: int
    #: The runs that it owns where only scattered numbers were left, or else none; `request_count` is the last of them.
    numbers: tuple[Run, ...] = ()
    #: The id of its hold, and the Unix second at which that expires by the store's clock.
    hold: str = ""
    expires: int = 0
    #: Whether it is refused because of what its claimant has, and not because too many are taken.
    capped: bool = False
    #: Of a refusal, how many one claimant may have; 0: there is no such limit.
    each: int = 0
    #: Of a refusal, seconds until the counter renews, and until waiting may help, be it for that or for a hold to
    #: expire that leaves room enough; 0: never.
    resets: float = 0.0
    retry_after: float = 0.0


class Overloaded(StoreUnavailable):
    """More claims wait for the store than a worker holds."""


class KeyReused(Exception):
    """The idempotency key was used before for another claim."""

    def __str__(self) -> str:
        return "the key was used before for a claim with another n, another claimant, or with hold and without"


class TooMany(Exception):
    """More numbers than one claim, hold or give-back may be about; the argument is how many may be."""

    def __str__(self) -> str:
        return f"too many numbers at once: there may be {self.args[0]}"


class ClaimantMissing(Exception):
    """The counter has a limit for each claimant, and the claim names none."""

    def __str__(self) -> str:
        return "the counter has a limit for each claimant, and the claim names none"


class ClaimantUnwanted(Exception):
    """The claim names a claimant, and the counter has no limit for each."""

    def __str__(self) -> str:
        return "the claim names a claimant, and the counter has no limit for each"


class BadRules(Exception):
    """A counter can't be given these rules; the argument says why."""


class NoSuchHold(Exception):
    """The counter knows of no such hold: there was none, or it is forgotten."""

    def __str__(self) -> str:
        return "the counter knows of no such hold: there was none, or it is forgotten"


class HoldResolved(Exception):
    """The hold was resolved in another way; the argument is its Resolution."""

    def __str__(self) -> str:
        resolution: Resolution = self.args[0]
        if resolution.outcome != "confirmed":
            return "the hold was given back before"
        kept = sum(last - first + 1 for first, last in resolution.numbers)
        return f"the hold was confirmed before, for {kept} of its {resolution.size} numbers"


class HoldExpired(HoldResolved):
    """The hold has expired: its numbers went back."""

    def __str__(self) -> str:
        return "the hold has expired, and its numbers went back"


class NoSuchNumber(Exception):
    """Numbers that should be given back were never given, or not to anybody."""

    def __str__(self) -> str:
        return "some of these numbers were never given to anybody, so nothing was given back"


class NumberLeased(StoreUnavailable):
    """Whether a number that should be given back has been given is known only once a worker's lease is over."""


class Server(msgspec.Struct, frozen=True):
    """A server of the store, as this worker knows it."""

    #: How messages and metrics call it; "" while it isn't known which it is, and for a store that is told as a whole.
    name: str
    connected: bool
    #: Connections made after the first one; over all servers of a store the sum never falls.
    reconnects: int = 0
    #: Why the last attempt to connect failed; "" if none has.
    trouble: str = ""
    #: Whether others, that is Sentinels, say that it is the one in charge.
    elected: bool = False


class Seen(msgspec.Struct, frozen=True):
    """The newest state of a counter that a worker knows of; `deleted`: that is its deletion.

    Whatever an operator makes of a counter makes its `revision` greater. `issued` is the highest number that ever left
    it in this epoch. `moved` counts the numbers that ever became free, were given again, were given back or left a
    hold. `most` is the largest claim, 0: no bound.
    """

    epoch: int
    revision: int
    issued: int
    limit: int
    most: int = 0
    deleted: bool = False
    moved: int = 0
    #: How many numbers one claimant may own, 0: no claimants.
    each: int = 0
    #: How it renews, and in which time zone (see windows.py); and where its window ends, in microseconds, 0: nowhere.
    every: str = ""
    zone: str = ""
    ends: int = 0
    #: How many holds anybody ever resolved, over all windows since it was last started over.
    resolved: int = 0


class Counter(msgspec.Struct, frozen=True):
    """A counter as the store has it. `epoch` is new whenever counting starts over: later epochs are greater.

    `count` is how many numbers are taken: `issued` less those that are free or given back. `lost` is told by `browse`
    only: the store is known to have lost what the counter had counted.
    """

    name: str
    count: int
    limit: int
    epoch: int
    lost: bool = False
    revision: int = 0
    #: The largest claim, 0: no bound.
    most: int = 0
    #: The highest number before this reading raised it to what the worker had seen; None: it didn't.
    raised: int | None = None
    issued: int = 0
    moved: int = 0
    #: How many of the numbers taken are out on leases that may come back: nobody has got them yet.
    leased: int = 0
    #: As in Seen.
    each: int = 0
    every: str = ""
    zone: str = ""
    ends: int = 0
    resolved: int = 0
    #: How many of the numbers taken are on holds that nobody has resolved.
    held: int = 0
    #: How many numbers were given back in this epoch.
    given_back: int = 0
    #: The Unix second at which the next hold expires, at the earliest; 0: none is known.
    due: int = 0
    #: The store's time in microseconds; 0 where the counter neither renews nor has anything held.
    now: int = 0
    #: How many numbers went back just now because their holds had expired.
    expired: int = 0
    #: Whether a hold was confirmed or released just now, by this word and not before it.
    settled: bool = False

    @property
    def seen(self) -> Seen:
        """It as what a worker has seen."""
        return Seen(
            self.epoch,
            self.revision,
            self.issued,
            self.limit,
            self.most,
            False,
            self.moved,
            self.each,
            self.every,
            self.zone,
            self.ends,
            self.resolved,
        )


class Rules(msgspec.Struct, frozen=True):
    """What an operator makes of a counter beside its limit; None keeps what it has.

    `most` is the largest claim, 0: no bound; `each` how many numbers one claimant may own, 0: no claimants; `every` and
    `zone` say how it renews (see windows.py), "": not at all.
    """

    most: int | None = None
    each: int | None = None
    every: str | None = None
    zone: str | None = None


#: All rules stay as they are.
KEEP = Rules()
#: What became of a hold.
Outcome = Literal["held", "confirmed", "released", "expired"]
#: What to do with a hold.
Action = Literal["confirm", "release"]


class Resolution(msgspec.Struct, frozen=True):
    """What became of a hold; "held": nothing, because more should be confirmed than the hold has."""

    outcome: Outcome
    #: How many numbers it was for.
    size: int
    #: The numbers that are confirmed, which are the first ones of it.
    numbers: tuple[Run, ...] = ()


#: What becomes of a counter that is put: its count is kept, or starts over; or it is no operator but the settings.
How = Literal["change", "restart", "configure"]


class Word(msgspec.Struct, frozen=True):
    """An operator's word: executed at most once, however often it is sent, and not after a moment."""

    #: Tells it from all others. Of a word about a hold nothing is remembered by this: a hold is resolved only once.
    id: str
    #: In microseconds of the store's clock (see Store.clock).
    not_after: int
    seen: Seen | None = None


class Wish(msgspec.Struct, frozen=True):
    """What a claim asks for beside numbers."""

    #: The id of the hold that it makes, and how many seconds that lasts; "" and 0: it is for good.
    hold: str = ""
    seconds: int = 0
    claimant: str = ""


class Batch(msgspec.Struct):
    """The claims of one worker on one counter that travel together, in arrival order.

    Sending a batch with the same `sequence` again never counts twice: the store keeps the reply to each worker's last
    batch (its receipt) and repeats it. What is sent again may leave out claims that nobody waits for any more; the
    `attempt` in the reply tells which of the compositions was executed.
    """

    name: str
    worker: str
    sequence: int
    #: How often it was sent before, and so which composition it is. From 1 on, what nothing was executed for leaves a
    #: receipt too: the copy before may still be on its way, and must not be executed after this one was answered.
    attempt: int
    #: The size of each claim; at least 1.
    sizes: list[int]
    #: The idempotency key of each claim, or None if no claim has one.
    keys: list[str | None] | None
    seen: Seen | None
    #: The limit with which a counter that isn't there is created; None: it isn't.
    create: int | None
    #: How many numbers are asked for as a lease.
    want: int = 0
    #: Runs of the worker's lease that it gives back: nobody has got them.
    back: Sequence[Run] = ()
    #: What the worker still has of its lease, in whole runs or what was left of them.
    held: Sequence[Run] = ()
    #: What each claim asks for beside numbers, or None; None if all of them are plain.
    wishes: list[Wish | None] | None = None


class Replay(msgspec.Struct, frozen=True):
    """The first answer to an idempotency key, found again."""

    size: int
    count: int
    limit: int
    admitted: bool
    #: As in Answer.
    numbers: tuple[Run, ...] = ()
    hold: str = ""
    expires: int = 0
    #: Whether it was refused because its claimant had as many as one may have; and who that was.
    capped: bool = False
    claimant: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """The store's reply to a batch.

    Claims are granted greedily in arrival order, each whole or not at all, so that `before`, `limit` and the sizes
    say what each claim got; a claim with a replay takes no part in that.
    """

    attempt: int
    epoch: int
    revision: int
    limit: int
    #: The largest claim, 0: no bound.
    most: int
    #: The numbers taken before the batch.
    before: int
    #: Of the counter after the batch, see Seen.
    issued: int
    moved: int
    #: Numbers out on leases that may come back; 0 unless a claim was not admitted, or none would be any more.
    out: int
    #: What the admitted claims got, one after the other.
    runs: Sequence[Run]
    #: What the worker is lent.
    lent: Sequence[Run]
    #: One entry for each claim with an idempotency key, in order; None where the key was new.
    replays: Sequence[Replay | None]
    #: The highest number before it was raised to what the worker had seen; None: it wasn't.
    raised: int | None = None
    #: As in Seen.
    each: int = 0
    every: str = ""
    zone: str = ""
    ends: int = 0
    resolved: int = 0
    #: As in Counter.
    due: int = 0
    now: int = 0
    expired: int = 0
    held: int = 0
    #: The claims, by their place in the batch, that were refused because of what their claimants have.
    capped: Sequence[int] = ()

    @property
    def seen(self) -> Seen:
        """The counter after the batch, as what a worker has seen."""
        return Seen(
            self.epoch,
            self.revision,
            self.issued,
            self.limit,
            self.most,
            False,
            self.moved,
            self.each,
            self.every,
            self.zone,
            self.ends,
            self.resolved,
        )
