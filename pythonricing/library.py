"""The counters without HTTP, for any asyncio application: docs/library.md."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from pythonricing.counting import arguments
from pythonricing.counting.arguments import whole
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import MAX_NUMBERS, NAME, StoreURLError
from pythonricing.settings import MAX_COUNT, NO_REPLICAS, Settings
from pythonricing.stores import create_store
from pythonricing.telemetry.claim_log import ClaimLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pythonricing.counting.journal import Journal
    from pythonricing.counting.model import Answer, Counter, Resolution, Run
    from pythonricing.settings import OnLoss

KEY = re.compile(r"[!-~]{1,255}")


@asynccontextmanager
async def open_counters(
    url: str,
    *,
    store_timeout: float = 2.0,
    store_replicas: int = 0,
    on_loss: OnLoss = "halt",
    halt_cache: float = 0.1,
    lease: float = 0.01,
) -> AsyncIterator[OpenCounters]:
    """The counters of the store behind `url`, for as long as the context lasts, on the running event loop.

    The options are the service's settings: `store_timeout` is the seconds that a claim waits for the store,
    `store_replicas` how many of a Redis or Valkey must have it before it is answered, `on_loss` what a loss of data
    does ("halt" or "raise"), `halt_cache` the seconds for which a halted counter is refused from memory, `lease` the
    seconds of its own demand that it takes ahead, 0: nothing. Each process opens its own, after it was forked.

    Doesn't wait for the store. Raises StoreURLError for a URL that can't be used and for a driver that isn't
    installed, ValueError for what the settings don't take, TypeError for a URL that is no string. The end waits for the
    claims on their way.
    """
    options = {
        "store_timeout": store_timeout,
        "store_replicas": store_replicas,
        "on_loss": on_loss,
        "halt_cache": halt_cache,
        "lease": lease,
    }
    msgspec.convert(options, Settings)
    if arguments.text("url", url).partition("://")[0] in NO_REPLICAS and store_replicas:
        raise StoreURLError(f"{url.partition('://')[0]}:// has no replicas that confirm")
    claim_log = ClaimLog(None, requests=False)
    store = create_store(url, store_timeout, store_replicas, on_loss)
    counters = Counters(store, claim_log, timeout=store_timeout, halt_cache=halt_cache, lease=lease)
    await counters.open()
    opened = OpenCounters(counters, claim_log)
    try:
        yield opened
    finally:
        opened.closed = True
        await counters.close()
        claim_log.close()


class OpenCounters:
    """Counters by their names, which are 1 to 64 of `A-Z a-z 0-9 . _ -`, but not `.` or `..`.

    Every method raises ValueError or TypeError for a value that can't be, StoreUnavailable if the store did not answer
    in time, StateLost if it has lost what the counter had counted, and RuntimeError once this is closed; all but
    `claim` also StoreRejected, if the store answered with an error. All of the store's are StoreErrors.
    """

    def __init__(self, counters: Counters, journal: Journal) -> None:
        self._counters = counters
        self._journal = journal
        self.closed = False

    async def claim(
        self, name: str, n: int = 1, *, key: str | None = None, hold: int = 0, claimant: str = ""
    ) -> Answer:
        """Claim n of a counter's numbers, all or nothing.

        An admitted claim owns the numbers `request_count - n + 1` to `request_count`. Near the limit only scattered
        ones may be left: then it owns the runs in the answer's `numbers`, each its first and its last number. A refused
        one is an answer too.
        The same `key` (1 to 255 visible ASCII characters, for one claim only) gets the first answer again: an admission
        for 24 hours, a refusal for a minute.

        With `hold` the numbers go back after so many seconds (1 to 86,400) unless the answer's `hold` is confirmed. On
        a counter with a limit for each, and only there, `claimant` (1 to 128 visible ASCII characters) says who claims;
        a refusal is `capped` where it is that limit that refused it. Either way n is at most 1,024.

        Raises ClaimantMissing and ClaimantUnwanted, NoSuchCounter (but `default` is made by itself), KeyReused for a
        key of a claim with another n, TooMany for an n above the counter's largest claim. After StoreUnavailable, and
        if the claim was cancelled, whether it was counted is not known: the same key finds out.
        """
        n = whole("n", n, 1, MAX_COUNT)
        if key is not None and not KEY.fullmatch(key):
            raise ValueError("a key must be 1 to 255 visible ASCII characters")
        hold, claimant = arguments.wish(hold, claimant)
        if (hold or claimant) and n > MAX_NUMBERS:
            raise ValueError(f"a claim with hold or claimant takes at most {MAX_NUMBERS}")
        claiming = self._for(name).claim(name, n, key, hold=hold, claimant=claimant)
        try:
            return await claiming
        except asyncio.CancelledError:
            # Answered, but not yet told when it was cancelled. A key finds its answer again, which may be an older one.
            if key is None and not claiming.cancelled() and claiming.done() and claiming.exception() is None:
                self._orphan(name, n, claiming.result())
            raise

    async def confirm(self, name: str, hold: str, n: int | None = None) -> Resolution:
        """Make a hold's numbers, or the first n of them, its claimant's for good; the others go back.

        Again it returns the same, for 24 hours. Raises NoSuchHold, NoSuchCounter, HoldExpired, HoldResolved if it was
        resolved in another way, TooMany if the hold has fewer than n.
        """
        return (await self._for(name).confirm(name, hold, n))[0]

    async def release(self, name: str, hold: str) -> Resolution:
        """Give a hold's numbers back. Again it returns the same. Raises as `confirm` does."""
        return (await self._for(name).release(name, hold))[0]

    async def give_back(self, name: str, runs: Sequence[Run]) -> int:
        """Give back numbers that somebody owns, as runs of a first and a last one, which lie apart, all or nothing.

        Returns how many had not been before. Raises NoSuchNumber, NoSuchCounter, and TooMany for more than 1,024.
        """
        return (await self._for(name).give_back(name, runs))[0]

    async def read(self, name: str) -> Counter:
        """The counter as the store has it; never counts. Raises NoSuchCounter."""
        return await self._for(name).read(name)

    async def configure(self, name: str, limit: int) -> Counter:
        """Create a counter or set its limit, as a program does when it starts: what was lost stays lost until `put`."""
        return await self._for(name).configure(name, whole("limit", limit, 0, MAX_COUNT))

    async def put(
        self,
        name: str,
        limit: int,
        *,
        most: int | None = None,
        each: int | None = None,
        every: str = "",
        zone: str = "",
    ) -> Counter:
        """Create a counter, or change its limit and its rules and keep its count.

        `most` is the largest claim and `each` how many one claimant may have (None: no bound). `every` is how it renews
        ("": not at all): "90s", "15m", "1h", "1d", or "day", "week", "month" of a time `zone`. Raises BadRules.

        It is an operator's word and ends a loss, but raises StateLost if it is the first to notice it. After
        StoreUnavailable it may have taken effect, but will not any more.
        """
        most = 0 if most is None else whole("most", most, 1, MAX_COUNT)
        each = 0 if each is None else whole("each", each, 1, MAX_COUNT)
        counter, _ = await self._for(name).put(name, limit, most, each, every, zone)
        return counter

    async def reset(self, name: str) -> Counter:
        """Let a counter count from 0 again, also after a loss, and keep its limit. Raises NoSuchCounter."""
        return await self._for(name).restart(name)

    async def delete(self, name: str) -> None:
        """Forget a counter; `default` starts over at 0. Raises NoSuchCounter."""
        await self._for(name).delete(name)

    def _orphan(self, name: str, n: int, answer: Answer) -> None:
        if answer.numbers:
            self._journal.scattered(name, [answer.numbers])
        if answer.admitted:
            self._journal.orphaned(name, answer.limit, [(answer.request_count, n)])

    def _for(self, name: str) -> Counters:
        if self.closed:
            raise RuntimeError("these counters are closed")
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't be a counter's name")
        return self._counters
