"""What Prometheus reads: right across the workers of a server, whoever is asked and whoever has died."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.counting.counters import Counters
from pythonricing.stores.memory import MemoryStore
from pythonricing.telemetry.metrics import MAX_LABELS, OTHER, Metrics
from pythonricing.telemetry.writer import Writer
from tests.stores.support import word

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text(running: Service, patience: float = PATIENCE) -> str:
    """One scrape, on a connection of its own: by any of the workers."""
    with urlopen(f"{running.url}/metrics", timeout=patience) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        body: str = answer.read().decode()
        return body


def scrape(running: Service, patience: float = PATIENCE) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text(running, patience))
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"pythonricing_{name}", frozenset(labels.items())), 0)


def outcomes(running: Service, counter: str = "default") -> tuple[float, float]:
    samples = scrape(running)
    admitted, refused = (of(samples, "claims_total", counter=counter, outcome=o) for o in ("admitted", "refused"))
    return admitted, refused


def everywhere(running: Service, expected: tuple[float, float], times: int) -> None:
    """Every worker says the same. Connections are spread over the workers, so many scrapes reach each of them."""
    wait_until(lambda: outcomes(running) == expected, f"{expected}; last seen {outcomes(running)}")
    for _ in range(times):
        assert outcomes(running) == expected


@pytest.mark.parametrize("command", ["granian", "uvicorn", "serve", "serve-uvicorn"])
def test_any_of_sixteen_workers_tells_what_all_have_counted_also_after_one_was_killed(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, command=command, workers=16, wait_for="/readyz")
    history = asyncio.run(hammer(running.port, 10, [1] * 1000, "/"))
    assert history.statuses() == {200: 100, 429: 900}
    everywhere(running, (100, 900), times=40)

    before = running.worker_pids()
    # Under uvicorn, the first child may be the tracker of multiprocessing's resources.
    victims = [pid for pid in before if "resource_tracker" not in command_line(pid)][:3]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: workers(running) == 16 and not set(victims) & set(running.worker_pids()), "new workers")
    everywhere(running, (100, 900), times=40)

    asyncio.run(hammer(running.port, 10, [1] * 100, "/"))
    everywhere(running, (100, 1000), times=20)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def workers(running: Service) -> float:
    """How many there are; -1 if a dead one was asked, which a stopped supervisor still holds the socket of."""
    try:
        return of(scrape(running, patience=5), "workers")
    except OSError:
        return -1


@pytest.mark.parametrize("command", ["granian", "uvicorn", "serve", "serve-uvicorn"])
def test_a_dead_worker_is_no_longer_counted_and_nothing_stays_behind(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    """Granian's supervisor is stopped meanwhile: so it can't start another worker."""
    running = service(empty_valkey.url, command=command, workers=3, wait_for="/readyz", runtime=tmp_path / "run")
    assert running.process is not None
    wait_until(lambda: workers(running) == 3, "three workers")
    [folder] = (tmp_path / "run").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    victim = next(pid for pid in running.worker_pids() if "resource_tracker" not in command_line(pid))
    running.process.send_signal(signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: workers(running) == 2, "the dead worker to be noticed")
    running.process.send_signal(signal.SIGCONT)
    wait_until(lambda: workers(running) == 3, "another worker")
    wait_until(lambda: running.output.read_text().count(' connected"') == 4, "it to be ready to stop")
    assert len(list(folder.glob("counter_*.db"))) == 3
    assert running.terminate() == 0
    wait_until(lambda: not list((tmp_path / "run").iterdir()), "the folder to be removed")


def test_what_a_killed_server_left_is_removed_by_the_next(
    empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    first = service(empty_valkey.url, command="granian", workers=1, wait_for="/readyz", runtime=tmp_path / "run")
    pids = first.worker_pids()
    assert first.terminate(signal.SIGKILL) == -signal.SIGKILL
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    [left] = (tmp_path / "run").iterdir()
    service(empty_valkey.url, command="granian", workers=1, wait_for="/readyz", runtime=tmp_path / "run")
    [folder] = (tmp_path / "run").iterdir()
    assert folder != left


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
def test_without_our_log_configuration_the_workers_meet_too(
    server: str, empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    """As `granian … pythonricing.app:app` without --log-config."""
    running = service(
        empty_valkey.url, command=f"{server}-plain", workers=4, wait_for="/readyz", runtime=tmp_path / "run"
    )
    asyncio.run(hammer(running.port, 10, [1] * 200, "/"))
    everywhere(running, (100, 100), times=10)
    assert running.terminate() == 0
    wait_until(lambda: not list((tmp_path / "run").iterdir()), "the folder to be removed")


def test_a_folder_that_is_given_is_used_and_emptied(
    empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "counter_0.db").write_bytes(b"from another life")
    running = service(empty_valkey.url, workers=2, wait_for="/readyz", multiproc=folder)
    running.get("/")
    everywhere(running, (1, 0), times=4)
    assert running.terminate() == 0
    assert not folder.exists() or not list(folder.iterdir())


def test_without_any_folder_a_worker_counts_for_itself_and_says_so(
    empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    running = service(empty_valkey.url, workers=1, wait_for="/readyz", multiproc=tmp_path / "file" / "folder")
    running.get("/")
    everywhere(running, (1, 0), times=1)
    assert [record for record in running.log() if "no folder to meet in" in record["message"]]


def test_the_store_is_shown_as_it_is(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=2, wait_for="/readyz", admin_token="t", halt_cache=0)
    running.get("/counters/seats", "PUT", b'{"limit": 3}', Authorization="Bearer t")
    running.get("/counters/seats?n=2", "POST")
    running.get("/counters/seats?n=2", "POST")
    wait_until(lambda: outcomes(running, "seats") == (1, 1), "both claims")
    samples = scrape(running)
    assert of(samples, "store_up") == 1
    assert (of(samples, "numbers_taken", counter="seats"), of(samples, "numbers_limit", counter="seats")) == (2, 3)
    assert of(samples, "state_lost", counter="seats") == 0
    assert of(samples, "batch_claims_count") == of(samples, "store_round_trip_seconds_count") == 2
    assert of(samples, "batch_claims_bucket", le="1.0") == of(samples, "batch_claims_sum") == 2
    empty_valkey.command("HSET", "pythonricing:{seats}", "lost", "2")
    wait_until(lambda: of(scrape(running), "state_lost", counter="seats") == 1, "the loss to show")


def test_a_store_that_is_away_is_shown_and_its_claims_are_unavailable(
    redis_server: Callable[..., RedisServer], service: Callable[..., Service]
) -> None:
    store = redis_server()
    running = service(store.url, workers=1, wait_for="/readyz", store_timeout=0.2)
    store.kill()
    assert running.get("/")[0] == 503
    assert running.get("/counters/anybody", "POST")[0] == 503
    samples = scrape(running)
    assert of(samples, "store_up") == 0
    assert of(samples, "claims_total", counter="default", outcome="unavailable") == 1
    # Not "anybody": whether there is such a counter is not known, and strangers must not make labels.
    assert of(samples, "claims_total", counter=OTHER, outcome="unavailable") == 1
    store.start()
    wait_until(lambda: of(scrape(running), "store_up") == 1, "the store to be seen again")
    assert of(scrape(running), "store_reconnects_total") == 1


def lint(body: str) -> list[str]:
    """What `promtool check metrics` and Prometheus' naming conventions would say."""
    found = []
    for family in text_string_to_metric_families(body):
        name = family.name
        counter = family.type == "counter"
        samples = {sample.name for sample in family.samples}
        checks = {
            "no prefix": not name.startswith("pythonricing_"),
            "not snake case": not re.fullmatch(r"[a-z][a-z0-9_]*", name),
            "no help": not family.documentation.endswith("."),
            "no type": family.type not in ("counter", "gauge", "histogram"),
            "a counter without _total": counter and samples - {f"{name}_total"},
            "_total without a counter": not counter and any(sample.endswith("_total") for sample in samples),
            "a reserved suffix": name.endswith(("_count", "_sum", "_bucket", "_info", "_created")),
            "its type in its name": re.search(rf"_{family.type}(_|$)", name),
            "an abbreviated unit": name.endswith(("_s", "_ms", "_us", "_sec", "_kb", "_mb", "_b")),
            "time not in seconds": "time" in family.documentation.lower() and not name.endswith("_seconds"),
            "a reserved label": any({"le", "quantile"} & set(s.labels) for s in family.samples)
            and family.type != "histogram",
        }
        found += [f"{name}: {problem}" for problem, wrong in checks.items() if wrong]
    families = [line.split()[2] for line in body.splitlines() if line.startswith("# TYPE")]
    found += [f"{name}: twice" for name in families if families.count(name) > 1]
    return found


def test_the_metrics_keep_the_conventions(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=2, wait_for="/readyz")
    running.get("/")
    body = text(running)
    assert lint(body) == []
    assert lint(body.replace("_round_trip_seconds", "_round_trip_ms").replace("# HELP pythonricing_workers W", "# W"))
    if promtool := shutil.which("promtool"):
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=body, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def silent() -> Writer:
    """A writer whose lines nobody reads."""
    return Writer(os.open(os.devnull, os.O_WRONLY))


def test_labels_are_bounded_and_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

    async def scenario() -> dict[Any, float]:
        store, writer = MemoryStore(), silent()
        writer.dropped = 7
        metrics = Metrics(store, writer)
        counters = Counters(store, metrics)
        await counters.open()
        for number in range(MAX_LABELS + 50):
            await store.put(f"c{number}", word(), 10)
            await counters.claim(f"c{number}")
        for number in range(MAX_LABELS + 50):
            await counters.claim(f"c{number}")
        metrics.close()
        return {
            (sample.name, sample.labels.get("counter"), sample.labels.get("outcome")): sample.value
            for family in metrics.collected().collect()
            for sample in family.samples
        }

    samples = asyncio.run(scenario())
    admitted = {key[1]: value for key, value in samples.items() if key[2] == "admitted"}
    assert len(admitted) == MAX_LABELS + 1
    assert sum(admitted.values()) == 2 * (MAX_LABELS + 50)
    assert admitted[OTHER] == 2 * 51
    assert samples["pythonricing_log_lines_dropped_total", None, None] == 7


def test_commands_are_told_by_kind_and_leases_as_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is busy is lent to; at its end all goes back."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

    async def scenario() -> tuple[dict[Any, float], dict[Any, float], int]:
        now = 1000.0

        def clock() -> float:
            return now

        metrics = Metrics(MemoryStore(), silent())
        counters = Counters(MemoryStore(), metrics, limit=10**6, clock=clock)
        await counters.open()
        for _ in range(60):
            now += 0.001
            await counters.claim("default")
            await asyncio.sleep(0)
        counters._worker.tell()  # what a timer does
        held = counters._lanes["default"].lease.left
        metrics.flush()
        busy = samples_of(metrics)
        await counters.close()
        metrics.flush()
        closed = samples_of(metrics)
        metrics.close()
        return busy, closed, held

    busy, closed, held = asyncio.run(scenario())
    assert busy["pythonricing_leased_numbers", None] == held > 0
    assert closed["pythonricing_leased_numbers", None] == 0
    assert closed["pythonricing_store_commands_total", "return"] == 1
    commands = sum(value for (name, _), value in closed.items() if name == "pythonricing_store_commands_total")
    assert closed["pythonricing_batch_claims_count", None] == closed["pythonricing_store_commands_total", "claims"]
    assert closed["pythonricing_store_round_trip_seconds_count", None] == commands < 60


def samples_of(metrics: Metrics) -> dict[Any, float]:
    return {
        (sample.name, sample.labels.get("kind")): sample.value
        for family in metrics.collected().collect()
        for sample in family.samples
    }


def test_counting_costs_a_batch_nothing_but_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus-client is only spoken to when the timer fires, however many batches there were."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

    async def scenario() -> None:
        metrics = Metrics(MemoryStore(), silent())
        flushes = []
        flushed = asyncio.Event()

        def flush() -> None:
            flushes.append(1)
            flushed.set()

        monkeypatch.setattr(metrics, "flush", flush)
        for _ in range(1000):
            metrics.answered("default", 16, 0.001, "claims")
            metrics.settled("default", 100, [(1, 1)], 15)
        assert not flushes
        await flushed.wait()
        assert len(flushes) == 1

    asyncio.run(scenario())
