"""What a slice has cost: a contender's server and store, everything else on the machine, and its host."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from loadtests.running import ContenderError
from loadtests.usage import machine_busy_seconds, stolen_seconds

if TYPE_CHECKING:
    from loadtests.running import Elsewhere, Running
    from loadtests.usage import Usage


class Meter:
    """Begins to count when it is made. Of a service elsewhere, and where there is no store, those figures are None."""

    def __init__(self, running: Running | Elsewhere) -> None:
        self._running = running
        self._before = running.usage()
        self._store, self._commands = _of_store(running)
        self._busy, self._stolen, self._begun = machine_busy_seconds(), stolen_seconds(), time.monotonic()

    def read(self, requests: int, generator_seconds: float) -> dict[str, Any]:
        """Since then, for so many requests. Raises ContenderError where a process has ended."""
        seconds = time.monotonic() - self._begun
        busy, stolen = machine_busy_seconds() - self._busy, stolen_seconds() - self._stolen
        running = self._running
        after, (store, commands) = running.usage(), _of_store(running)
        if not running.alive:
            raise ContenderError(f"it ended: {running.last_words()}")
        if after and self._before and not after.same_processes(self._before):
            raise ContenderError("a worker ended while it was measured")
        cpu = after.cpu_since(self._before) if after and self._before else None
        store_cpu = store.cpu_since(self._store) if store and self._store else None
        others = max(0.0, busy - (cpu or 0.0) - (store_cpu or 0.0) - generator_seconds)
        share = 1e6 / max(1, requests)
        return {
            "cpu_us": None if cpu is None else cpu * share,
            "store_cpu_us": None if store_cpu is None else store_cpu * share,
            "store_commands": (
                None if commands is None or self._commands is None else (commands - self._commands) / requests * 1000
            ),
            "worker_mb": after.worker_mb if after else None,
            "machine_cores": busy / seconds,
            "other_cores": others / seconds,
            "stolen_cores": stolen / seconds,
        }


def _of_store(running: Running | Elsewhere) -> tuple[Usage | None, int | None]:
    return (running.store.usage(), running.store.commands()) if running.store else (None, None)
