"""Clients that claim in the background while a test does harm."""

from __future__ import annotations

import asyncio
import threading
from itertools import repeat
from typing import TYPE_CHECKING, Any

from loadtests.rig.clients import History, hammer
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from loadtests.rig.service import Service


#: What a load claims from, in turn: a store's faults must not mix up the batches of one worker's counters.
COUNTERS = ("default", "seats", "tickets")
#: The admin token of services under load.
TOKEN = "let-me"
ADMIN: dict[str, Any] = {"authorization": f"Bearer {TOKEN}"}


def put_counters(service: Service, limit: int, counters: Collection[str] = COUNTERS) -> None:
    """Create these counters with this limit each, whatever limit the service has of its own."""
    for name in counters:
        status, body = service.get(f"/counters/{name}", "PUT", b'{"limit": %d}' % limit, **ADMIN)
        assert status in (200, 201), body


class Load:
    """Clients that claim in the background, from several counters in turn. `done` is how many claims have ended."""

    def __init__(
        self,
        service: Service,
        claims: int | None = None,
        *,
        counters: Sequence[str] = COUNTERS,
        clients: int = 32,
        keys: bool = False,
        retry: Collection[int] = (),
        pace: float = 0.0,
        rest: float = 0.0,
    ) -> None:
        self.history = History()
        self._stopping = threading.Event()
        sizes = self._sizes(claims)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(
                hammer(
                    service.port,
                    *(clients, sizes, [f"/counters/{name}" for name in counters]),
                    keys=keys,
                    retry=retry,
                    pace=pace,
                    rest=rest,
                    history=self.history,
                )
            ),
            daemon=True,
        )
        self._thread.start()

    def _sizes(self, claims: int | None) -> Iterable[int]:
        for size in repeat(1) if claims is None else repeat(1, claims):
            if self._stopping.is_set():
                return
            yield size

    @property
    def done(self) -> int:
        return len(self.history.calls)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait_for(self, claims: int) -> None:
        """Wait until that many claims more have ended, or all have."""
        target = self.done + claims
        wait_until(lambda: self.done >= target or not self.running, f"{claims} claims to end")

    def join(self) -> History:
        """Wait for the end of every claim."""
        self._thread.join(2 * PATIENCE)
        assert not self.running, f"claims hang: {self.history.statuses()}"
        return self.history

    def stop(self) -> History:
        """Make no more claims, and wait for the answers to those on their way."""
        self._stopping.set()
        return self.join()


def sold_out(history: History, counters: Collection[str] = COUNTERS) -> bool:
    """Whether somebody was told of each counter that nothing is left."""
    return all(429 in history.of(name).statuses() for name in counters)


def until_sold_out(load: Load, service: Service, limit: int) -> History:
    """The end of a load, and claims after it until every counter has given `limit` numbers.

    What was lent when a connection was lost may come back too late for the last claims of a load.
    """
    history = load.join()

    def is_sold_out() -> bool:
        admitted = history.admitted()
        if all(admitted.get(name) == limit for name in COUNTERS):
            return True
        history.calls.extend(Load(service, len(COUNTERS), clients=1).join().calls)
        return False

    wait_until(is_sold_out, f"every number to be admitted: {history.admitted()}")
    return history
