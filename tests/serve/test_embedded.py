"""One embedded store, whoever uses it: commands and services share it, and none of its ends loses a number."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.redis import RedisServer, redis_programs
from loadtests.rig.service import Service, environment
from loadtests.rig.waiting import wait_until
from pythonricing.serve import embedded
from pythonricing.serve.embedded import EmbeddedError, embedded_valkey
from tests.serve.commands import PROGRAM, processes_of, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def stores(home: Path) -> list[int]:
    """The servers on the store of this state folder."""
    return processes_of(f"{home}/pythonricing/valkey.sock")


def claims(service: Service, count: int) -> list[int]:
    """The numbers that so many claims got."""
    return asyncio.run(hammer(service.port, 10, [1] * count, "/")).owned()


def test_a_command_while_serve_starts_shares_its_store(tmp_path: Path, service: Callable[..., Service]) -> None:
    running = service(None, "", command="serve", workers=2)
    for _ in range(3):
        assert run("reset", home=tmp_path) == (0, "default: 0 of 100\n", "")
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")
    # A reset came last, or else the first claim: either way, each number is given once.
    assert claims(running, 150) == list(range(1, 101))
    assert run("status", home=tmp_path) == (0, "default: 100 of 100, halted\n", "")
    assert len(stores(tmp_path)) == 1


def is_ready(service: Service) -> bool:
    return bool(service.get("/readyz")[0] == 200)


def has_another_store(home: Path, before: int) -> bool:
    return stores(home) not in ([], [before])


@pytest.mark.parametrize("attempt", range(3))
def test_two_services_at_once_share_one_store(attempt: int, tmp_path: Path, service: Callable[..., Service]) -> None:
    pair = [service(None, "", command="serve", workers=2, limit=1000) for _ in range(2)]
    for each in pair:
        wait_until(partial(is_ready, each), "the service to be ready")
    assert len(stores(tmp_path)) == 1

    async def run_both() -> list[int]:
        histories = await asyncio.gather(*(hammer(each.port, 10, [1] * 600, "/") for each in pair))
        return sorted(number for history in histories for number in history.owned())

    assert asyncio.run(run_both()) == list(range(1, 1001))
    assert len(stores(tmp_path)) == 1
    assert [each.terminate() for each in pair] == [0, 0]
    assert not stores(tmp_path)


def test_when_its_owner_ends_a_service_that_shares_takes_the_store_over(
    tmp_path: Path, service: Callable[..., Service]
) -> None:
    first = service(None, "/readyz", command="serve", workers=2, limit=1000)
    second = service(None, "/readyz", command="serve", workers=2, limit=1000)
    numbers = claims(first, 100) + claims(second, 100)
    [store] = stores(tmp_path)
    assert first.terminate() == 0
    wait_until(lambda: stores(tmp_path) not in ([], [store]), "the store to be started by the other one")
    wait_until(lambda: second.get("/readyz")[0] == 200, "the store to answer")
    assert sorted(numbers + claims(second, 1000)) == list(range(1, 1001))
    # It owns it now: with it the store ends.
    assert second.terminate() == 0
    assert not stores(tmp_path)


def test_a_store_that_is_still_reading_its_file_is_shared(tmp_path: Path) -> None:
    """Whoever started it, and though it has no lock; and its socket outlives those who share it."""
    folder = tmp_path / "pythonricing"
    path = folder / "valkey.sock"
    store = RedisServer(folder, None, "--unixsocket", str(path), "--key-load-delay", "0").start()
    store.run("SET", "one", 1)
    commands: list[Any] = [("SET", f"key-{number}", number) for number in range(100_000)]
    records = b"".join(map(hiredis.pack_command, commands))
    store.stop()
    [increments] = (folder / "appendonlydir").glob("*.incr.aof")
    with increments.open("ab") as file:
        file.write(records)
    slow = [redis_programs()[0], "--port", str(store.port), "--dir", str(folder), "--unixsocket", str(path)]
    process = subprocess.Popen([*slow, "--appendonly", "yes", "--key-load-delay", "500"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: store.command("PING").startswith("-LOADING"), "the store to read its file")
        command = subprocess.Popen(
            [PROGRAM, "reset"],
            stdout=subprocess.PIPE,
            env=environment({}) | {"XDG_STATE_HOME": str(tmp_path)},
        )

        def refused() -> int:
            count = store.info("errorstats").get("errorstat_LOADING", "count=0")
            return int(count.removeprefix("count="))

        before = refused()
        wait_until(lambda: refused() > before, "the command to be told that it is loading")
        store.run("CONFIG", "SET", "key-load-delay", 0)
        assert command.communicate(timeout=60)[0] == b"default: 0 of 100\n"
        assert run("status", home=tmp_path)[1] == "default: 0 of 100\n"
        assert store.command("EXISTS", "pythonricing:{default}") == ":1"
        assert path.is_socket()
    finally:
        process.terminate()
        process.wait()


def test_a_store_that_takes_long_to_answer_keeps_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "PATIENCE", 3.0)
    folder = tmp_path / "pythonricing"
    path = folder / "valkey.sock"
    store = RedisServer(folder, None, "--unixsocket", str(path)).start()
    store.pause()
    with pytest.raises(EmbeddedError, match="does not answer"), embedded_valkey(lambda: None):
        pass
    store.resume()
    assert run("status", home=tmp_path)[1] == "default: 0 of 100\n"
    store.stop()


def refuse_writes(home: Path) -> None:
    """Let the store's file grow no more, as on a full disk."""
    [store] = stores(home)
    resource.prlimit(store, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def accept_writes(home: Path) -> None:
    [store] = stores(home)
    resource.prlimit(store, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_store_whose_disk_is_full_is_shared(tmp_path: Path, service: Callable[..., Service]) -> None:
    first = service(None, "/readyz", command="serve", workers=1, limit=1000, lease=0)
    numbers = claims(first, 100)
    owner = stores(tmp_path)
    refuse_writes(tmp_path)
    wait_until(lambda: not number_of(first, numbers), "the disk to be full")

    assert run("status", home=tmp_path) == (0, f"default: {len(numbers)} of 1000\n", "")
    second = service(None, "/livez", command="serve", workers=1, limit=1000, lease=0)
    assert second.get("/")[0] == 503
    assert stores(tmp_path) == owner
    accept_writes(tmp_path)
    for each in (first, second):
        wait_until(partial(number_of, each, numbers), "claims to be admitted again")
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert second.terminate() == 0
    assert first.terminate() == 0


def number_of(service: Service, numbers: list[int]) -> bool:
    status, body = service.get("/")
    if status == 200:
        numbers.append(body["request_count"])
    return status == 200


def test_a_stop_that_could_not_write_what_was_counted_says_so(tmp_path: Path, service: Callable[..., Service]) -> None:
    running = service(None, "/readyz", command="serve", workers=1, limit=1000)
    refuse_writes(tmp_path)
    wait_until(lambda: running.get("/")[0] == 503, "the disk to be full")
    assert running.terminate() == 1
    assert "could not write" in running.errors.read_text()
    assert [r for r in running.log() if r["level"]["name"] == "CRITICAL" and "could not write" in r["message"]]


@pytest.mark.parametrize("command", ["serve", "serve-uvicorn"])
def test_a_store_that_dies_is_started_again_on_its_file(
    command: str, tmp_path: Path, service: Callable[..., Service]
) -> None:
    running = service(None, "/readyz", command=command, workers=2, limit=1000)
    numbers = claims(running, 100)
    for _ in range(2):
        [store] = stores(tmp_path)
        os.kill(store, signal.SIGKILL)
        wait_until(partial(has_another_store, tmp_path, store), "another store")
        wait_until(lambda: number_of(running, numbers), "claims to be admitted again")
    assert sorted(numbers + claims(running, 1100)) == list(range(1, 1001))
    assert running.terminate() == 0
    assert not stores(tmp_path)


def test_a_store_that_can_not_be_started_again_ends_the_service(
    tmp_path: Path, service: Callable[..., Service]
) -> None:
    running = service(None, "/readyz", command="serve", workers=1)
    [store] = stores(tmp_path)
    (tmp_path / "pythonricing" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    os.kill(store, signal.SIGKILL)
    assert running.process is not None
    assert running.process.wait(60) == 1
    [line] = running.errors.read_text().splitlines()
    assert line.startswith("pythonricing: the embedded store does not start")
    assert "valkey.log" in line
    # Nor does the next one, and it says why.
    status, output, errors = run("status", home=tmp_path)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert "manifest" in errors
