"""What batches are worth: claims a second with batches and with one claim a transaction, in turns on one machine.

    python -m loadtests.group_commit [ROUNDS] [SECONDS]

Granian with as many workers as CPUs, 32 connections of wrk, request log on, every store as durable as it can be: fsync
before each answer. Prints each contender's median and range over the rounds.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtests.rig.postgres import PostgresServer
from loadtests.rig.redis import RedisServer
from loadtests.rig.service import Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp

CONNECTIONS = 32
BATCHES, ONE_CLAIM = "pythonricing.app:app", "loadtests.group_commit:one_claim_a_transaction"


def __getattr__(name: str) -> ASGIApp:
    """The same service with batches of one claim; made when a server asks for it."""
    if name != "one_claim_a_transaction":
        raise AttributeError(name)
    from pythonricing.app import app
    from pythonricing.counting import lane as counters

    counters.MAX_BATCH = 1
    return app


def claims_a_second(folder: Path, url: str, target: str, seconds: int) -> float:
    """One run of the service against a counter that never halts."""
    service = Service(folder, url, workers=len(os.sched_getaffinity(0)), limit=2**53 - 1, store_timeout=30)
    service.command[-1] = target
    service.start("/readyz")
    try:
        measure(service, 1)
        return measure(service, seconds)
    finally:
        service.stop()


def measure(service: Service, seconds: int) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", f"{service.url}/"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in output, output
    assert "Socket errors" not in output, output
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found, output
    return float(found[1])


def main(rounds: int = 5, seconds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers: list[Any] = [PostgresServer().start(), RedisServer(folder / "valkey").start()]
        contenders = {
            "PostgreSQL, batches": (servers[0].url, BATCHES),
            "PostgreSQL, one claim a transaction": (servers[0].url, ONE_CLAIM),
            "Valkey (appendfsync always), batches": (servers[1].url, BATCHES),
            "Valkey (appendfsync always), one claim a command": (servers[1].url, ONE_CLAIM),
        }
        figures: dict[str, list[float]] = {label: [] for label in contenders}
        try:
            for number in range(rounds):
                # Another order each round, so that none is always measured after the same other.
                order = list(contenders)[number % 4 :] + list(contenders)[: number % 4]
                for label in order:
                    figures[label].append(claims_a_second(folder, *contenders[label], seconds))
                    print(f"round {number + 1}: {label}: {figures[label][-1]:.0f}/s", flush=True)
        finally:
            for server in servers:
                server.stop()
        for label, values in figures.items():
            print(f"{label}: median {statistics.median(values):.0f}/s ({min(values):.0f} to {max(values):.0f})")
        batches, one = (statistics.median(figures[label]) for label in list(contenders)[:2])
        print(f"PostgreSQL, batches over one claim a transaction: {batches / one:.1f} times")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
