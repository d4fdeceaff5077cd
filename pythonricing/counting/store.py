"""What a store is: the one protocol that the memory, Redis and PostgreSQL stores keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from pythonricing.counting.model import KEEP, MAX_REREAD, Rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pythonricing.counting.model import (
        Action,
        Batch,
        Counter,
        How,
        Resolution,
        Run,
        Seen,
        Server,
        Verdict,
        Word,
    )


class Store(Protocol):
    """Where counters live. Every method but `open` and `close` raises StoreUnavailable, StoreRejected or StateLost."""

    #: Called after each connection, the first one too: what it leads to may know less than the one before.
    on_connect: Callable[[], None]
    #: Called when a connection is gone, before it is made again.
    on_disconnect: Callable[[], None]

    def servers(self) -> Sequence[Server]:
        """The servers that hold counters, as far as they are known."""

    def server_of(self, name: str) -> str:
        """The name of the server that holds a counter, as far as is known."""

    async def open(self) -> None:
        """Start connecting. Doesn't wait for it and doesn't fail while the store is away."""

    async def close(self) -> None:
        """Let go of every connection."""

    async def ready(self, name: str | None = None) -> None:
        """Wait until the server of a counter is connected; without a name, any server."""

    async def probe(self) -> list[str] | None:
        """The servers that don't answer while others do; None where there is only one, which is for `read` to ask.

        Raises StoreUnavailable if none answers, or if it is known that too few replicas would confirm a claim.
        """

    async def claim(self, batch: Batch) -> Verdict:
        """Execute `batch` atomically, or repeat its receipt. Raises NoSuchCounter too."""

    async def read(self, name: str, seen: Seen | None = None, create: int | None = None) -> Counter:
        """Read a counter and check it against `seen`. Raises NoSuchCounter too."""

    async def clock(self, name: str) -> int:
        """The time by the clock that the words about a counter are held to, in microseconds."""

    async def put(
        self, name: str, word: Word, limit: int | None, rules: Rules = KEEP, how: How = "change"
    ) -> tuple[Counter, bool]:
        """Create a counter, change its limit (None keeps it) and its rules, or count from 0 in a new epoch.

        A change ends the state of a counter that was lost, but one that nobody knew to be lost is lost first. With
        "restart" an epoch begins, whatever was lost. "configure" is no operator's word: a loss stays one. Returns the
        counter and whether it was created. Raises NoSuchCounter too if there is none and no limit to create it with.
        Another renewal keeps the count and the epoch; the window is then the one that contains the store's time.
        """

    async def resolve(
        self, name: str, word: Word, id: str, action: Action, number: int | None = None
    ) -> tuple[Resolution | None, Counter]:
        """Confirm so many numbers of a hold (None: all) and give back the others; or release all of them.

        A hold that is resolved stays as it is, so that the same again says the same, whatever its word is. The
        Resolution tells what became of the hold, which may be something else: so that its worker has seen that too,
        nothing is raised for it. None: the counter knows of no such hold. Raises NoSuchCounter too.
        """

    async def give_back(self, name: str, word: Word, runs: Sequence[Run]) -> tuple[int, Counter]:
        """Give back numbers that somebody owns, in runs that lie apart. Returns how many had not been before.

        Nothing is done if one of them was never given in this epoch: that raises NoSuchNumber; nor while one is on a
        lease, so that nobody may have it yet: that raises NumberLeased. Raises NoSuchCounter too.
        """

    async def delete(self, name: str, word: Word) -> Seen:
        """Forget a counter and remember that it was deleted. Raises NoSuchCounter too."""

    async def browse(self, limit: int, after: str = "", *, reachable_only: bool = False) -> list[Counter]:
        """The first `limit` counters by name whose names come after `after`, lost ones too; doesn't create any.

        With `reachable_only` those are left out whose server doesn't answer while others do; else it is waited for.
        One whose window is over, and whose next one this machine can't tell, is as it was (see ZoneUnknown).
        """

    async def inspect(self) -> dict[str, dict[str, str]]:
        """What its servers say of themselves, by server and by their own names for it: for people, not for decisions.

        `clock` is how many microseconds their clock is ahead of this machine's. Nothing is said of one that doesn't
        answer while others do.
        """


async def reread(read: Callable[[], Awaitable[Counter]]) -> Counter:
    """Read a counter again, as long as holds that have expired are left: each command looks at a few of them only."""
    counter = first = await read()
    expired = first.expired
    for _ in range(MAX_REREAD):
        if not 0 < counter.due * 1_000_000 <= counter.now or 0 < counter.ends <= counter.now:
            break
        counter = await read()
        expired += counter.expired
    return counter if counter is first else msgspec.structs.replace(counter, raised=first.raised, expired=expired)


def trouble(store: Store) -> str:
    """Why a store, or a part of it, can't be reached, as far as is known."""
    return next((server.trouble for server in store.servers() if server.trouble and not server.connected), "")
