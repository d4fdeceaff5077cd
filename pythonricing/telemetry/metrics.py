"""Metrics: a journal that counts, what the server's other workers have counted, and the store's state as gauges."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from loguru import logger
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from pythonricing.counting.journal import Journal
from pythonricing.counting.model import DEFAULT
from pythonricing.telemetry import history, workers
from pythonricing.telemetry.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from pythonricing.counting import model
    from pythonricing.counting.journal import Kind
    from pythonricing.counting.store import Store
    from pythonricing.telemetry.history import Second
    from pythonricing.telemetry.writer import Writer

#: Seconds after which the server's other workers see what was counted here.
FLUSH_SECONDS = 0.1
#: Seconds after which they see it of what happens without claims: reconnects, dropped log lines.
IDLE_SECONDS = 5.0
#: Counters with a label of their own in each worker; claims on others are counted under OTHER.
MAX_LABELS = 1000
#: Counters whose state is told; more, if more are lost or halted.
MAX_TOLD = 500
#: No counter can have this name.
OTHER = "(other)"

CLAIMS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]
SECONDS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class Metrics(Journal):
    """The journal of claims as numbers, with what the store says of its connections and the writer of its lines.

    What is told adds up in plain Python and reaches prometheus-client, where each number costs about 3 us, once in
    FLUSH_SECONDS.
    """

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._slot = workers.join()
        #: What the workers of this server share; None for a server of one process.
        self.folder = self._slot and self._slot.folder
        self._history = self._keep_history()
        self._registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        # Values are kept where this says when their metric is made; prometheus-client decides it when it is loaded,
        # before this worker has its slot.
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
        self._batch = Histogram("batch_claims", "Claims that travelled to the store together.", buckets=CLAIMS, **named)
        self._round_trip = Histogram(
            "store_round_trip_seconds", "Time from sending a batch to its answer.", buckets=SECONDS, **named
        )
        self._commands = Counter(
            "store_commands",
            "Batches that the store answered. claims: with claims; lease: only to ask for a lease; return: only to "
            "give one back.",
            ["kind"],
            **named,
        )
        self._leased_numbers = Gauge(
            "leased_numbers",
            "Numbers that workers hold on leases: they are taken, and nobody has got them yet.",
            multiprocess_mode="livesum",
            **named,
        )
        self._expired = Counter(
            "numbers_expired", "Numbers that went back because their holds had expired.", ["counter"], **named
        )
        self._reconnects = Counter("store_reconnects", "Connections to the store made again.", **named)
        self._dropped = Counter(
            "log_lines_dropped", "Log lines dropped: their reader was too slow, or they could not be written.", **named
        )
        self._store_connected = Gauge(
            "store_connected",
            "Workers connected to a server of the store.",
            ["node"],
            multiprocess_mode="livesum",
            **named,
        )
        Gauge("workers", "Worker processes of this server.", multiprocess_mode="livesum", **named).set(1)
        self._reconnects_before = self._dropped_before = 0
        self._servers_before: dict[str, bool] = {}
        self._labels = {DEFAULT}
        self._pending: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._batches: list[tuple[int, float, Kind]] = []
        self._leased: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        for outcome in ("admitted", "refused", "unavailable", "orphaned"):
            self._claims.labels(DEFAULT, outcome)
        for kind in ("claims", "lease", "return"):
            self._commands.labels(kind)

    def open(self) -> None:
        """Start to count what happens without claims."""
        self.flush()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.open)

    def close(self) -> None:
        """Show what was counted, and give this worker's slot back."""
        for timer in (self._timer, self._idle):
            if timer is not None:
                timer.cancel()
        self.flush()
        self._history.close()
        if self._slot is not None:
            mark_process_dead(self._slot.number, str(self._slot.folder))  # type: ignore[no-untyped-call]
            self._slot.leave()

    def answered(self, name: str, claims: int, seconds: float, kind: Kind) -> None:
        self._batches.append((claims, seconds, kind))
        if self._timer is None:
            self._changed()

    def leased(self, name: str, numbers: int) -> None:
        if numbers:
            self._leased[name] = numbers
        else:
            self._leased.pop(name, None)
        if self._timer is None:
            self._changed()

    def settled(self, name: str, limit: int, admitted: Sequence[tuple[int, int]], refused: int) -> None:
        if name not in self._labels:
            name = self._label(name)
        if admitted:
            self._pending[name, "admitted"] += len(admitted)
        if refused:
            self._pending[name, "refused"] += refused
        if self._timer is None:
            self._changed()

    def refused(self, name: str, claims: int) -> None:
        self._count(name, "refused", claims)

    def expired(self, name: str, numbers: int) -> None:
        self._expired.labels(self._label(name)).inc(numbers)

    def unavailable(self, name: str, claims: int) -> None:
        self._count(name, "unavailable", claims)

    def orphaned(self, name: str, limit: int, admitted: Sequence[tuple[int, int]]) -> None:
        self._count(name, "orphaned", len(admitted))

    def _label(self, name: str) -> str:
        """The label of a counter that exists: somebody with the admin token has named it, so it may have one."""
        if len(self._labels) < MAX_LABELS:
            self._labels.add(name)
        return name if name in self._labels else OTHER

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
        told = dict.fromkeys(("admitted", "refused"), 0)
        for (name, outcome), claims in self._pending.items():
            self._claims.labels(name, outcome).inc(claims)
            if outcome in told:
                told[outcome] += claims
        self._pending.clear()
        if any(told.values()):
            self._history.add(**told)
        self._leased_numbers.set(sum(self._leased.values()))
        for claims, seconds, kind in self._batches:
            self._commands.labels(kind).inc()
            if kind == "claims":
                self._batch.observe(claims)
            self._round_trip.observe(seconds)
        self._batches.clear()
        dropped = self._writer.dropped
        self._dropped.inc(dropped - self._dropped_before)
        self._dropped_before = dropped
        self._flush_store()

    def _flush_store(self) -> None:
        told = self._store.servers()
        reconnects = sum(server.reconnects for server in told)
        servers = {server.name: server.connected for server in told if server.name}
        self._reconnects.inc(reconnects - self._reconnects_before)
        self._reconnects_before = reconnects
        if servers != self._servers_before:
            for server in self._servers_before.keys() | servers:
                self._store_connected.labels(server).set(servers.get(server, False))
            self._servers_before = servers

    def render(self, state: list[model.Counter] | None) -> bytes:
        """What all workers have counted, and the store's state, for Prometheus. Reads files: not for the event loop.

        `state` holds the store's counters; None: it doesn't answer.
        """
        if state is not None:
            others = [each for each in state[MAX_TOLD:] if each.lost or each.count >= each.limit]
            state = state[:MAX_TOLD] + others
        gauges = CollectorRegistry()
        gauges.register(Gauges(state))
        return generate_latest(self.collected()) + generate_latest(gauges)

    def collected(self) -> CollectorRegistry:
        """What all workers of this server have counted. Reads files: not for the event loop."""
        if self._slot is None:
            return self._registry
        folder = str(self._slot.folder)
        for slot in self._slot.dead():
            mark_process_dead(slot, folder)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        registry.register(Merged(self._slot.values()))
        return registry

    def seconds(self) -> list[Second]:
        """What this server has admitted and refused in each second. Reads files: not for the event loop."""
        return self._history.seconds() if self._slot is None else history.read(self._slot.histories())

    def claims(self) -> dict[str, dict[str, int]]:
        """This server's claims by counter and outcome. Reads files: not for the event loop."""
        kept = self._claims if self._slot is None else Merged(self._slot.values("counter"))
        counted: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for metric in kept.collect():
            for sample in metric.samples:
                if sample.name == "pythonricing_claims_total":
                    counted[sample.labels["counter"]][sample.labels["outcome"]] = int(sample.value)
        return counted

    def _keep_history(self) -> History:
        if self._slot is not None:
            try:
                return History(self._slot.history())
            except OSError as error:
                logger.warning("the last five minutes of this worker are its own: {}", error)
        return History(None)

    @property
    def first(self) -> bool:
        """Whether this worker is the one of its server that speaks for all."""
        return self._slot is None or self._slot.number == 0


class Merged:
    """The values of these files as a collector: prometheus-client's own would read every *.db in the folder."""

    def __init__(self, files: list[str]) -> None:
        self._files = files

    def collect(self) -> Iterator[Metric]:
        yield from MultiProcessCollector.merge(self._files)  # type: ignore[no-untyped-call]


class Gauges:
    """The store's state as a collector of prometheus-client."""

    def __init__(self, state: list[model.Counter] | None) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("pythonricing_store_up", "Whether the store answers.", value=self._state is not None)
        taken, limit, held, given_back, lost = (
            GaugeMetricFamily(f"pythonricing_{name}", text, labels=["counter"])
            for name, text in (
                ("numbers_taken", "Numbers of a counter that are taken."),
                ("numbers_limit", "Numbers that a counter has."),
                ("numbers_held", "Numbers of a counter that are on holds."),
                ("numbers_given_back", "Numbers of a counter that went back, in whatever way, in its epoch."),
                ("state_lost", "Whether the store has lost what a counter had counted."),
            )
        )
        for counter in self._state or ():
            taken.add_metric([counter.name], counter.count)
            limit.add_metric([counter.name], counter.limit)
            held.add_metric([counter.name], counter.held)
            given_back.add_metric([counter.name], counter.given_back)
            lost.add_metric([counter.name], counter.lost)
        yield from (taken, limit, held, given_back, lost)
