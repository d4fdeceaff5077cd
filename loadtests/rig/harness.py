"""The fault suite's parts: a store that can be harmed, clients that remember, and the judge of what they remember."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from itertools import pairwise, repeat
from typing import TYPE_CHECKING

from loadtests.rig.clients import History, hammer
from loadtests.rig.postgres import PostgresServer
from loadtests.rig.redis import RedisServer
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service


class Victim(ABC):
    """A store server and the harm that can be done to it. It keeps what it has acknowledged through a crash."""

    def __init__(self, server: RedisServer | PostgresServer) -> None:
        self.server = server
        #: Its address, for the service.
        self.url = server.url
        #: Its TCP port, for a proxy.
        self.port = server.port

    def start(self) -> None:
        """Start it, or start it again on its data, and wait until it answers."""
        self.server.start()

    def kill(self) -> None:
        """End it as a power cut would end the process."""
        self.server.kill()

    def pause(self) -> None:
        """Stop it from doing anything; its connections stay open."""
        self.server.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        self.server.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Clean up."""
        self.server.stop()

    @abstractmethod
    def drop_connections(self) -> None:
        """Close every client's connection, whatever is under way."""

    @abstractmethod
    def wipe(self) -> None:
        """Lose all data, while running."""

    @abstractmethod
    def backup(self) -> None:
        """Keep a copy of the data as it is now."""

    @abstractmethod
    def restore(self) -> None:
        """Be replaced by the copy, as after a disaster."""

    @abstractmethod
    def proxied(self, proxy: Proxy) -> str:
        """Its address through a proxy."""


class RedisVictim(Victim):
    """Valkey with an append-only file that is flushed before every reply."""

    server: RedisServer

    def __init__(self, folder: Path) -> None:
        super().__init__(RedisServer(folder))
        self._copy = folder.with_name(f"{folder.name}-copy")

    def drop_connections(self) -> None:
        self.server.command("CLIENT", "KILL", "TYPE", "normal")

    def wipe(self) -> None:
        assert self.server.command("FLUSHALL") == "+OK"

    def backup(self) -> None:
        self.server.kill()
        shutil.copytree(self.server.folder, self._copy)
        self.server.start()

    def restore(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.folder)
        shutil.copytree(self._copy, self.server.folder)
        self.server.start()

    def proxied(self, proxy: Proxy) -> str:
        return f"redis://127.0.0.1:{proxy.port}/0"


class PostgresVictim(Victim):
    """PostgreSQL, which flushes its log before every commit."""

    server: PostgresServer

    def __init__(self, folder: Path) -> None:
        super().__init__(PostgresServer())
        self._copy = self.server.folder / "copy"

    def drop_connections(self) -> None:
        self.server.terminate_backends()

    def wipe(self) -> None:
        self.server.sql("DROP SCHEMA pythonricing CASCADE", "SELECT")

    def backup(self) -> None:
        self.server.kill()
        self.server.copy(self.server.data, self._copy)
        self.server.start()

    def restore(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.data)
        self.server.copy(self._copy, self.server.data)
        self.server.start()

    def proxied(self, proxy: Proxy) -> str:
        return f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"


#: The stores that the suite attacks.
VICTIMS: dict[str, Callable[[Path], Victim]] = {"redis": RedisVictim, "postgres": PostgresVictim}


class Load:
    """Clients that claim in the background. `done` is how many claims have ended."""

    def __init__(
        self,
        service: Service,
        claims: int | None = None,
        *,
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
                    *(clients, sizes),
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


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[list[None]]:
    """Do something again and again, from a thread; yields a list that grows with each time."""
    stopping = threading.Event()
    times: list[None] = []

    def run() -> None:
        while not stopping.wait(seconds):
            act()
            times.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        stopping.set()
        thread.join(PATIENCE)


def orphans(service: Service) -> set[int]:
    """The numbers that the service has logged as admitted to nobody."""
    extras = [record["extra"] for record in service.log() if "orphaned" in record["extra"]]
    return {number for e in extras for number in range(e["orphaned"] - e["n"] + 1, e["orphaned"] + 1)}


def judge(
    history: History,
    service: Service,
    *others: Service,
    limit: int,
    statuses: Collection[int],
    killed: bool = False,
) -> None:
    """Hold what the clients saw against the store's final count and the service's log; explain what doesn't fit.

    Every number up to the count belongs to one claim, or is logged as orphaned; where a worker was `killed`, as many
    as claims were left without an answer may belong to nobody. A worker that isn't connected again yet accounts for
    its last batch once it is. `others` are services on the same store.
    """
    owned = history.owned()
    owners = set(owned)
    in_flight = sum(call.n for call in history.calls if call.status == 0) if killed else 0

    def account() -> tuple[int, set[int], set[int]]:
        count, orphaned = count_of(service), set().union(*map(orphans, (service, *others)))
        return count, orphaned, set(range(1, count + 1)) - owners - orphaned

    deadline = time.monotonic() + PATIENCE / 4
    count, orphaned, nobodys = account()
    while len(nobodys) > in_flight and time.monotonic() < deadline:
        time.sleep(0.1)
        count, orphaned, nobodys = account()
    faults = {
        "answers of another kind": {s: n for s, n in history.statuses().items() if s not in statuses},
        "numbers with two owners": sorted({number for number, after in pairwise(owned) if number == after}),
        "numbers above the store's count": sorted(n for n in owners | orphaned if n > count),
        "numbers that belong to nobody": sorted(nobodys) if len(nobodys) > in_flight else [],
        "admitted over the limit": owned[limit:],
        "the count is over the limit": [count] if count > limit else [],
    }
    verdict = {what: found for what, found in faults.items() if found}
    assert not verdict, (
        f"{verdict}\nhistory: {history.summary()}\nlimit {limit}, count {count}, owned {len(owners)}, orphaned "
        f"{len(orphaned)}, nobody's {len(nobodys)}, in flight at a kill: {in_flight}\n{tail(service)}"
    )


def tail(service: Service, lines: int = 20) -> str:
    """The last unusual lines of the service's log."""
    rare = [r for r in service.log() if "request_count" not in r["extra"]]
    return "\n".join(
        f"{r['time']['repr']} {r['process']['id']} {r['level']['name']} {r['message']}" for r in rare[-lines:]
    )


def count_of(service: Service, name: str = "default") -> int:
    """The counter as the service reads it, once it can."""
    status, body = wait_until(
        lambda: (answer := service.get(f"/counters/{name}"))[0] == 200 and answer, f"counter {name} to be readable"
    )
    assert status == 200
    count: int = body["count"]
    return count
