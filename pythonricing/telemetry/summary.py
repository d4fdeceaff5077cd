"""For a person at a terminal: one line a second of what all workers of a server have done with claims."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loguru import logger

from pythonricing.counting.model import StoreError

if TYPE_CHECKING:
    from pythonricing.counting.counters import Counters
    from pythonricing.telemetry.metrics import Metrics

SECONDS = 1.0
#: Counters that a line names.
NAMED = 4


class Summary:
    """Says what the server's claims have come to, if this worker is its first; only what has changed."""

    def __init__(self, counters: Counters, metrics: Metrics) -> None:
        self._counters = counters
        self._metrics = metrics
        self._before: dict[str, dict[str, int]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        if self._metrics.first:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Say the last of it, as far as the other workers have told it."""
        if self._task is not None:
            self._task.cancel()
            await self._say()

    async def _run(self) -> None:
        # A worker that takes the place of one that died goes on from here.
        self._before = await asyncio.to_thread(self._metrics.claims)
        while True:
            await asyncio.sleep(SECONDS)
            await self._say()

    async def _say(self) -> None:
        self._metrics.flush()
        now = await asyncio.to_thread(self._metrics.claims)
        news: dict[str, dict[str, int]] = {}
        for name, outcomes in now.items():
            before = self._before.get(name, {})
            more = {outcome: claims - before.get(outcome, 0) for outcome, claims in outcomes.items()}
            if any(more.values()):
                news[name] = {outcome: claims for outcome, claims in more.items() if claims}
        self._before = now
        if not news:
            return
        busiest = sorted(news, key=lambda name: -sum(news[name].values()))
        told = [await self._of(name, news[name]) for name in busiest[:NAMED]]
        if len(busiest) > NAMED:
            told.append(f"and {len(busiest) - NAMED} more counters")
        troubled = any({"unavailable", "orphaned"} & outcomes.keys() for outcomes in news.values())
        logger.log("WARNING" if troubled else "INFO", "{}", "; ".join(told))

    async def _of(self, name: str, outcomes: dict[str, int]) -> str:
        try:
            counter = await self._counters.read(name)
            taken = f" {counter.count:,} of {counter.limit:,}"
        except StoreError:
            taken = ""
        return f"{name}{taken}: " + ", ".join(f"{claims:,} {outcome}" for outcome, claims in sorted(outcomes.items()))
