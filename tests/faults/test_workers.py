"""Workers are killed under load; the service is told to stop under load."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.clients import Client
from loadtests.rig.judge import judge, numbers_of_workers, workers
from loadtests.rig.load import COUNTERS, Load, put_counters
from loadtests.rig.victims import kill_a_worker
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.proxy import Proxy
    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim


@pytest.mark.parametrize("lease", [0, 0.01, 0.1])
def test_a_killed_worker_loses_at_most_its_claims_in_flight(victim: Victim, service: Callable[..., Service]) -> None:
    limit = 1_000_000
    running = service(victim.url, "/readyz")
    put_counters(running, limit)
    load = Load(running, clients=16, pace=0.01)
    load.wait_for(1_000)
    before = workers(running)
    kill_a_worker(running)
    load.wait_for(1_000)
    history = load.stop()

    def succeeded() -> bool:
        # A successor gets new connections only.
        history.calls += Load(running, 100).join().calls
        return bool(workers(running) - before)

    wait_until(succeeded, "the worker's successor to admit claims")
    assert 0 < history.statuses()[0] <= 2 * 16
    judge(history, running, limit=limit, statuses={200, 0}, killed=True)


def test_idempotency_keys_recover_a_killed_workers_claims(victim: Victim, service: Callable[..., Service]) -> None:
    claims, limit = 6_000, 1_500
    running = service(victim.url, "/readyz")
    put_counters(running, limit)
    load = Load(running, claims, clients=16, keys=True, retry={0}, pace=0.01)
    load.wait_for(1_000)
    kill_a_worker(running)
    history = load.join()
    assert history.statuses()[0] > 0
    assert history.admitted() == dict.fromkeys(COUNTERS, limit)
    # No number is anybody's loss: what was in flight has been asked for again.
    judge(history, running, limit=limit, statuses={200, 429, 0})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ("granian", "Spawning worker-6"),
        ("granian", "Started worker-"),
        ("serve", "Spawning worker-6"),
        ("serve", "Started worker-"),
        ("serve-uvicorn", "Started parent process"),
        ("serve-uvicorn", "Started server process"),
    ],
)
def test_a_signal_while_workers_start_stops_them(
    command: str, moment: str, number: signal.Signals, victim: Victim, service: Callable[..., Service]
) -> None:
    running = service(victim.url, "", command=command, workers=6)
    wait_until(lambda: moment in running.output.read_text(), "the workers to be on their way")
    assert running.terminate(number) == 0


SERVERS = ["granian", "uvicorn", "serve", "serve-uvicorn"]


@pytest.mark.parametrize("command", SERVERS)
def test_sigterm_under_load_answers_every_claim_that_it_took(
    command: str, victim: Victim, service: Callable[..., Service]
) -> None:
    limit = 1_000_000
    running = service(victim.url, "/readyz", command=command)
    put_counters(running, limit)
    load = Load(running, clients=16, pace=0.05)
    load.wait_for(1_000)
    # Claims are on their way when the signal comes, and get their answers only after it.
    victim.pause()
    time.sleep(1)
    before = load.history.statuses()[200]
    assert running.process is not None
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    victim.resume()
    assert running.process.wait(60) == 0
    history = load.stop()
    assert history.statuses()[200] >= before + 16
    admitted = {(call.counter, number) for call in history.calls for number in call.numbers}
    assert admitted == {(name, n) for (_, name), numbers in numbers_of_workers(running).items() for n in numbers}
    # Started anew, it counts on from the last number that somebody owns.
    running.start("/readyz")
    judge(history, running, limit=limit, statuses={200, 0, 503})


@pytest.mark.parametrize("command", ["granian", "serve", "serve-uvicorn"])
def test_sigterm_ends_readiness_before_the_claims_in_flight(
    command: str, victim: Victim, proxy: Proxy, service: Callable[..., Service]
) -> None:
    running = service(victim.proxied(proxy), "/readyz", command=command, workers=1, store_timeout=50)
    put_counters(running, 100)

    async def run() -> None:
        probing = Client(running.port)
        assert (await probing.request("/readyz", "GET"))[0] == 200
        victim.pause()
        passed = proxy.passed
        claims = [asyncio.create_task(Client(running.port).request(f"/counters/{name}")) for name in COUNTERS]
        await asyncio.to_thread(wait_until, lambda: proxy.passed > passed, "a claim to be on its way")
        assert running.process is not None
        running.process.send_signal(signal.SIGTERM)
        word = "Shutting down" if command == "serve-uvicorn" else "Stopping worker"
        await asyncio.to_thread(wait_until, lambda: word in running.output.read_text(), "the worker to be told")
        # A worker that were still ready would ask the store, and wait.
        async with asyncio.timeout(30):
            try:
                status, body = await probing.request("/readyz", "GET")
            except (OSError, asyncio.IncompleteReadError):
                pass  # it takes no requests any more
            else:
                assert (status, body["title"]) == (503, "Stopping")
        assert not any(claim.done() for claim in claims)
        victim.resume()
        assert await asyncio.gather(*claims) == [(200, {"request_count": 1, "limit": 100})] * len(COUNTERS)

    asyncio.run(run())
    assert running.process is not None
    assert running.process.wait(60) == 0
    assert sorted(numbers_of_workers(running).values()) == [[1]] * len(COUNTERS)
