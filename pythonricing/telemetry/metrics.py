"""Metrics: a journal that counts, and what Prometheus reads of it, of the store and of the server's other workers."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING, Any

from pythonricing.counting.journal import Journal
from pythonricing.counting.model import DEFAULT, StoreError
from pythonricing.telemetry import workers
from pythonricing.web.api import NO_STORE, Endpoint, respond

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric
    from starlette.types import Receive, Scope, Send

    from pythonricing.counting.counters import Counters
    from pythonricing.counting.model import Counter

#: Seconds after which the server's other workers see what was counted here.
FLUSH_SECONDS = 0.1
#: Seconds after which they see it of what happens without claims: reconnects, dropped log lines.
IDLE_SECONDS = 5.0
#: Counters with a label of their own in each worker; claims on others are counted under OTHER.
MAX_LABELS = 1000
#: No counter can have this name.
OTHER = "(other)"
#: Counters whose state is shown.
MAX_SHOWN = 500
#: Seconds for which a worker shows the same state of the store, and waits for it.
FRESH_SECONDS = 1.0

CLAIMS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]
SECONDS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class Tally:
    """A histogram's observations since the last flush: prometheus-client would take 3 us for each."""

    def __init__(self, histogram: Any, bounds: list[float]) -> None:
        self._histogram = histogram
        self._bounds = [*bounds, inf]
        self._values: list[float] = []
        self.add = self._values.append

    def flush(self) -> None:
        values = sorted(self._values)
        self._values.clear()
        below = 0
        for bucket, bound in zip(self._histogram._buckets, self._bounds, strict=True):
            up_to = bisect_right(values, bound)
            if up_to > below:
                bucket.inc(up_to - below)
            below = up_to
        if values:
            self._histogram._sum.inc(sum(values))


class Metrics(Journal):
    """The journal of claims as numbers.

    `reconnects` and `dropped` tell how often the store was connected again and how many log lines were dropped; `nodes`
    which servers the store has and whether each is connected.
    """

    def __init__(
        self, reconnects: Callable[[], int], dropped: Callable[[], int], nodes: Callable[[], Mapping[str, bool]]
    ) -> None:
        self._slot = workers.join()
        #: What the workers of this server share; None for a server of one process.
        self.folder = self._slot and self._slot.folder
        # Only now: where prometheus-client keeps its values is decided when it is loaded and when they are made.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
        from prometheus_client.multiprocess import mark_process_dead

        self._registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if self._slot is None:
            values.ValueClass = values.MutexValue
        else:
            slot = self._slot.number
            values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
            mark_process_dead(slot, str(self._slot.folder))  # type: ignore[no-untyped-call]
        named: dict[str, Any] = {"namespace": "pythonricing", "registry": self._registry}
        self._claims = Counter(
            "claims",
            "Claims by what became of them. orphaned: admitted after the client was told 503 (then it counts as "
            "unavailable too) or had left.",
            ["counter", "outcome"],
            **named,
        )
        batch = Histogram("batch_claims", "Claims that travelled to the store together.", buckets=CLAIMS, **named)
        round_trip = Histogram(
            "store_round_trip_seconds", "Time from sending a batch to its answer.", buckets=SECONDS, **named
        )
        self._batch, self._round_trip = Tally(batch, CLAIMS), Tally(round_trip, SECONDS)
        self._told = [
            (Counter("store_reconnects", "Connections to the store made again.", **named), reconnects),
            (Counter("log_lines_dropped", "Log lines dropped because their reader was too slow.", **named), dropped),
        ]
        self._before = [0] * len(self._told)
        self._connected = Gauge(
            "store_connected",
            "Workers connected to a server of the store.",
            ["node"],
            multiprocess_mode="livesum",
            **named,
        )
        self._nodes = nodes
        self._nodes_before: dict[str, bool] = {}
        Gauge("workers", "Worker processes of this server.", multiprocess_mode="livesum", **named).set(1)
        self._labels = {DEFAULT}
        self._pending: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        for outcome in ("admitted", "refused", "unavailable", "orphaned"):
            self._claims.labels(DEFAULT, outcome)

    def open(self) -> None:
        """Start to count what happens without claims."""
        self.flush()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.open)

    def close(self) -> None:
        for timer in (self._timer, self._idle):
            if timer is not None:
                timer.cancel()
        self.flush()
        if self._slot is not None:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(self._slot.number, str(self._slot.folder))  # type: ignore[no-untyped-call]
            self._slot.leave()

    def answered(self, name: str, claims: int, seconds: float) -> None:
        self._batch.add(claims)
        self._round_trip.add(seconds)
        if self._timer is None:
            self._changed()

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        # Such a counter exists, so somebody with the admin token has named it: it may have a label.
        if name not in self._labels:
            if len(self._labels) < MAX_LABELS:
                self._labels.add(name)
            else:
                name = OTHER
        if admitted:
            self._pending[name, "admitted"] += len(admitted)
        if refused:
            self._pending[name, "refused"] += refused
        if self._timer is None:
            self._changed()

    def refused(self, name: str, claims: int) -> None:
        self._count(name, "refused", claims)

    def unavailable(self, name: str, claims: int) -> None:
        self._count(name, "unavailable", claims)

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        self._count(name, "orphaned", len(admitted))

    def _count(self, name: str, outcome: str, claims: int) -> None:
        self._pending[name if name in self._labels else OTHER, outcome] += claims
        if self._timer is None:
            self._changed()

    def _changed(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Show the server's other workers what was counted here."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for labels, claims in self._pending.items():
            self._claims.labels(*labels).inc(claims)
        self._pending.clear()
        self._batch.flush()
        self._round_trip.flush()
        for index, (counter, tell) in enumerate(self._told):
            now = tell()
            counter.inc(now - self._before[index])
            self._before[index] = now
        nodes = dict(self._nodes())
        if nodes != self._nodes_before:
            for node in self._nodes_before.keys() | nodes:
                self._connected.labels(node).set(nodes.get(node, False))
            self._nodes_before = nodes

    def collected(self) -> CollectorRegistry:
        """What all workers of this server have counted. Reads files: not for the event loop."""
        if self._slot is None:
            return self._registry
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        folder = str(self._slot.folder)
        for slot in self._slot.dead():
            mark_process_dead(slot, folder)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return registry

    def refusals(self) -> dict[str, int]:
        """Claims that this server has refused, by counter. Reads files: not for the event loop."""
        return {
            sample.labels["counter"]: int(sample.value)
            for metric in self.collected().collect()
            if metric.name == "pythonricing_claims"
            for sample in metric.samples
            if sample.name == "pythonricing_claims_total" and sample.labels["outcome"] == "refused"
        }


class Snapshot:
    """The store's counters as they were at most FRESH_SECONDS ago, however many ask."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._task: asyncio.Task[list[Counter] | None] | None = None
        self._taken = 0.0

    async def take(self) -> list[Counter] | None:
        """The first MAX_SHOWN counters; None while the store doesn't answer."""
        now = asyncio.get_running_loop().time()
        if self._task is None or now - self._taken >= FRESH_SECONDS:
            self._taken = now
            self._task = asyncio.create_task(self._read())
        return await asyncio.shield(self._task)

    async def _read(self) -> list[Counter] | None:
        try:
            async with asyncio.timeout(FRESH_SECONDS):
                return await self._counters.browse(MAX_SHOWN)
        except (StoreError, TimeoutError):
            return None


class Scrape(Endpoint):
    """`GET /metrics`: what this server has counted and what the store says, for Prometheus."""

    def __init__(self, counters: Counters, metrics: Metrics, snapshot: Snapshot) -> None:
        super().__init__(counters)
        self._metrics = metrics
        self._snapshot = snapshot
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

        state = await self._snapshot.take()
        async with self._one_at_a_time:
            self._metrics.flush()
            body = await asyncio.to_thread(self._render, state)
        await respond(send, 200, body, (b"content-type", CONTENT_TYPE_PLAIN_0_0_4.encode()), NO_STORE)

    def _render(self, state: list[Counter] | None) -> bytes:
        from prometheus_client import CollectorRegistry, generate_latest

        gauges = CollectorRegistry()
        gauges.register(Gauges(state))
        return generate_latest(self._metrics.collected()) + generate_latest(gauges)


class Gauges:
    """The store's state as a collector of prometheus-client."""

    def __init__(self, state: list[Counter] | None) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        yield GaugeMetricFamily("pythonricing_store_up", "Whether the store answers.", value=self._state is not None)
        taken, limit, lost = (
            GaugeMetricFamily(f"pythonricing_{name}", text, labels=["counter"])
            for name, text in (
                ("numbers_taken", "Numbers of a counter that are taken."),
                ("numbers_limit", "Numbers that a counter has."),
                ("state_lost", "Whether the store has lost what a counter had counted."),
            )
        )
        for counter in self._state or ():
            taken.add_metric([counter.name], counter.count)
            limit.add_metric([counter.name], counter.limit)
            lost.add_metric([counter.name], counter.lost)
        yield from (taken, limit, lost)
