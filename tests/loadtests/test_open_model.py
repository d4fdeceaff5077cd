from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.contenders import UNLIMITED, Contender
from loadtests.latencies import Latencies
from loadtests.open_model.generator import Asked, Generator
from loadtests.open_model.outcome import judged
from loadtests.open_model.schedule import schedule
from loadtests.placement import tree
from loadtests.running import Running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def ask(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], moments: list[int], **options: Any
) -> Asked:
    """What became of requests to a server of the test's own."""

    async def run() -> Asked:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await Generator("127.0.0.1", port, REQUEST, **{"connections": 2, "timeout": 30.0, **options}).run(
                moments
            )
        finally:
            server.close()

    return asyncio.run(run())


async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        writer.write(ANSWER)
    writer.close()


def test_arrivals_come_at_the_rate_and_again_from_the_seed() -> None:
    constant = schedule(1000, 2, "constant", 1)
    assert len(constant) == 2000
    assert constant[:3] == [0, 1_000_000, 2_000_000]
    poisson = schedule(1000, 20, "poisson", 1)
    assert poisson == schedule(1000, 20, "poisson", 1) != schedule(1000, 20, "poisson", 2)
    assert len(poisson) == pytest.approx(20_000, rel=0.03)
    gaps = [after - before for before, after in pairwise(poisson)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


def test_every_request_is_asked_once_and_answered() -> None:
    asked = ask(at_once, schedule(1000, 0.5, "poisson", 3))
    expected = len(schedule(1000, 0.5, "poisson", 3))
    assert [status for _, status, _ in asked.answers] == [200] * expected
    assert len(asked.late) == expected
    assert min(asked.late) >= 0
    assert (asked.timed_out, asked.lost, asked.unsent) == (0, 0, 0)


def test_what_no_connection_is_free_for_waits_and_is_counted_from_when_it_was_due() -> None:
    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        await asyncio.sleep(0.3)
        writer.write(ANSWER)
        await at_once(reader, writer)

    asked = ask(held, [0, 0, 0, 0, 0])
    assert asked.waited >= 3
    assert len(asked.answers) == 5
    # All five were meant to start at once, so that all five have waited for what held the first two.
    assert min(took for took, _, _ in asked.answers) > 0.29e9


def test_what_is_not_answered_in_time_is_censored_and_never_dropped() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    asked = ask(never, [0, 0, 0, 0, 0, 0], timeout=0.2)
    assert [status for _, status, _ in asked.answers] == [0] * 6
    assert asked.timed_out == 6
    assert asked.unsent >= 1
    assert min(took for took, _, _ in asked.answers) >= 0.2e9
    assert judged(asked, 6, 1, None).p99_ms >= 199


def test_closed_connections_are_made_again() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        writer.close()

    asked = ask(once, schedule(200, 0.2, "constant", 1))
    assert len(asked.answers) == 40
    assert {status for _, status, _ in asked.answers} == {200}
    assert asked.reopened >= 37


def test_a_fresh_connection_is_opened_when_its_request_is_due_and_belongs_to_its_latency() -> None:
    opened = []

    async def slow_to_accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(time.monotonic())
        await reader.read(1000)
        writer.write(ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        writer.close()

    moments = [0, 100_000_000, 200_000_000]
    asked = ask(slow_to_accept, moments, fresh=True, connections=8)
    assert [status for _, status, _ in asked.answers] == [200] * 3
    assert len(opened) == 3
    assert opened[2] - opened[0] > 0.15
    assert (asked.waited, asked.reopened, asked.lost) == (0, 0, 0)


def test_fresh_connections_are_no_more_than_allowed_at_once() -> None:
    open_now, most = 0, 0

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await reader.read(1000)
        await asyncio.sleep(0.02)
        open_now -= 1
        writer.write(ANSWER)
        await reader.read()
        writer.close()

    asked = ask(held, [0] * 9, fresh=True)
    assert [status for _, status, _ in asked.answers] == [200] * 9
    assert most <= 2
    assert asked.waited == 7


def test_a_connection_that_is_lost_is_a_request_without_an_answer() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(ANSWER[:40])
        writer.close()

    asked = ask(cut, [0, 1, 2])
    assert asked.lost == 3
    assert all(status == 0 and took >= 30e9 for took, status, _ in asked.answers)


def test_every_answer_is_checked() -> None:
    def body(number: int) -> bytes:
        return b'{"request_count":%d,"limit":9}' % number

    answers = [(1_000_000, 200, body(1)), (1_000_000, 200, body(1)), (1_000_000, 503, b""), (1_000_000, 429, body(2))]
    found = judged(Asked(answers, late=[0] * 4), 4, 1, 9)
    assert found.wrong == {"a number given twice": 1, "503: ": 1, "refused while there was room": 1}
    assert (found.answered, found.admitted) == (4, 2)
    assert judged(Asked(answers, late=[0] * 4), 4, 1, None).wrong == {"status 503": 1, "status 429": 1}


def test_a_run_that_measured_the_generator_is_void() -> None:
    answers = [(10_000_000, 200, b"{}")] * 100
    assert not judged(Asked(answers, late=[900_000] * 100), 100, 1, None).void
    assert judged(Asked(answers, late=[1_200_000] * 100), 100, 1, None).void


def test_histograms_are_merged_and_not_averaged(tmp_path: Path) -> None:
    quick, slow = Latencies(), Latencies()
    for _ in range(990):
        quick.add(1.0)
    for _ in range(10):
        slow.add(100.0)
    whole = Latencies.merged([quick, Latencies(slow.encoded())])
    assert whole.count == 1000
    assert whole.percentile(98) == pytest.approx(1.0, rel=0.01)
    assert whole.percentile(99.5) == pytest.approx(100, rel=0.01)
    whole.write_hgrm(tmp_path / "whole.hgrm")
    assert "Percentile" in (tmp_path / "whole.hgrm").read_text()
    assert Latencies().percentile(99) == Latencies().mean == Latencies().largest == 0


def test_a_pause_of_the_server_is_seen_by_all_that_it_kept_waiting(tmp_path: Path) -> None:
    """200 ms of 5 s are 4 %: a quarter of the requests meant for them wait for more than 150 ms, which is the p99."""
    output = tmp_path / "open.json"
    with Running(Contender.parse("constant+granian"), UNLIMITED) as running:
        command = [sys.executable, "-m", "loadtests.open_model", running.url, "--rate", "1000", "--seconds", "5"]
        process = subprocess.Popen([*command, "--timeout", "60", "--output", str(output)], stdout=subprocess.PIPE)
        try:
            before = running.usage()
            while running.usage().cpu_since(before) < 0.05:
                assert process.poll() is None
                time.sleep(0.02)
            pids = tree(running.pid)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.communicate()
    found = json.loads(output.read_text())
    assert found["p99_ms"] > 140
    assert found["answered"] == found["offered"]
    assert (found["wrong"], found["timed_out"], found["lost"]) == ({}, 0, 0)


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "loadtests.open_model", "http://127.0.0.1:1/", "--rate", "10", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: http://127.0.0.1:1/ can't be reached")
    assert "Traceback" not in done.stderr
