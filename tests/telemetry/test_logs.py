"""Every line on stdout is one JSON object in Loguru's shape; a reader that stops reading stops nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.service import Service, environment
from loadtests.rig.waiting import wait_until
from pythonricing.telemetry.writer import ATOMIC_WRITE, MAX_BUFFERED, Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtests.rig.redis import RedisServer

RECORD = {
    *("elapsed", "exception", "extra", "file", "function", "level", "line", "message", "module", "name"),
    *("process", "thread", "time"),
}


def run(code: str) -> list[dict[str, Any]]:
    """Run code in a process of its own and return the objects on its stdout."""
    script = f"from pythonricing.telemetry import logs\nwriter = logs.configure('INFO')\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_has_the_shape_of_loguru() -> None:
    [ours] = run("from loguru import logger\nlogger.bind(a=1).warning('hello {}', 'world')")
    theirs_code = """
import sys
from loguru import logger
logger.remove(); logger.add(sys.stdout, serialize=True); logger.bind(a=1).warning('hello {}', 'world')
"""
    done = subprocess.run([sys.executable, "-c", theirs_code], capture_output=True, check=True, text=True)
    theirs = json.loads(done.stdout)

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(each) for key, each in value.items()}
        return float if isinstance(value, int | float) else type(value)

    assert shape(ours) == shape(theirs)
    assert set(ours["record"]) == RECORD
    for key in ("message", "extra", "level"):
        assert ours["record"][key] == theirs["record"][key]
    assert "hello world" in ours["text"]


def test_the_fast_line_of_a_claim_has_the_same_shape() -> None:
    code = """
import asyncio
from pythonricing.telemetry.claim_log import ClaimLog
async def main():
    journal = ClaimLog(writer, requests=True)
    journal.settled('tickets', 100, [(3, 1), (5, 2), (6, 1)], 0)
    journal.close()
asyncio.run(main())
from loguru import logger
logger.info('x')
"""
    *claims, other = run(code)
    assert {key: type(value) for key, value in claims[0]["record"].items()} == {
        key: type(value) for key, value in other["record"].items()
    }
    assert [
        claim["record"]["extra"] for claim in sorted(claims, key=lambda c: c["record"]["extra"]["request_count"])
    ] == [
        {"counter": "tickets", "n": 1, "request_count": 3, "limit": 100},
        {"counter": "tickets", "n": 2, "request_count": 5, "limit": 100},
        {"counter": "tickets", "n": 1, "request_count": 6, "limit": 100},
    ]
    assert claims[0]["record"]["level"]["name"] == "INFO"
    assert "tickets: 3 of 100" in claims[0]["text"]


def test_the_standard_library_and_exceptions_come_out_as_json_too() -> None:
    code = """
import logging
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger('uvicorn.error').exception('boom %s', {'a': 1})
"""
    [line] = run(code)
    assert line["record"]["message"] == "boom {'a': 1}"
    assert line["record"]["exception"]["type"] == "ZeroDivisionError"
    assert "1 / 0" in line["record"]["exception"]["traceback"] or "<string>" in line["record"]["exception"]["traceback"]
    assert line["record"]["function"] == "<module>"


def test_a_line_that_is_too_long_for_one_write_is_clipped_and_stays_json() -> None:
    code = """
from loguru import logger
def deep(n):
    return deep(n - 1) if n else {}['x' * 5000]
try:
    deep(200)
except KeyError:
    logger.bind(a='y' * 9000).exception('z' * 9000)
print_ = len
"""
    script = f"from pythonricing.telemetry import logs\nwriter = logs.configure('INFO')\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    [line] = done.stdout.splitlines(keepends=True)
    assert len(line) <= ATOMIC_WRITE
    assert "[…]" in json.loads(line)["record"]["message"]


def test_lines_of_several_processes_never_interleave(tmp_path: Path) -> None:
    script = """
import sys
from loguru import logger
from pythonricing.telemetry import logs
logs.configure('INFO')
for number in range(2000):
    logger.info('{} {}', sys.argv[1] * (number % 700), number)
"""
    reader, writer = os.pipe()
    processes = [
        subprocess.Popen([sys.executable, "-c", script, name], stdout=writer, env=environment({})) for name in "abcd"
    ]
    os.close(writer)
    with os.fdopen(reader) as lines:
        messages = [json.loads(line)["record"]["message"] for line in lines]
    assert [process.wait() for process in processes] == [0] * 4
    ours = [message for message in messages if "dropped" not in message]
    assert len(ours) > 1000
    assert all(len(set(message.split(" ")[0])) <= 1 for message in ours)


def test_a_reader_that_stops_reading_blocks_nobody_and_is_told_what_was_dropped() -> None:
    reader, writing = os.pipe()
    writer = Writer(writing)
    line = b"x" * 999 + b"\n"
    count = 3 * MAX_BUFFERED // len(line)
    began = time.monotonic()
    for _ in range(count):
        writer.write([line])
    assert time.monotonic() - began < 30
    assert writer.dropped > 0
    kept = count - writer.dropped
    read = 0
    while read < kept:
        read += os.read(reader, 1 << 16).count(b"\n")
    assert read == kept
    os.close(reader)
    writer.close()


@pytest.mark.parametrize("server", ["serve", "serve-uvicorn", "granian"])
def test_every_line_of_every_process_is_json(
    server: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, command=server, workers=3, wait_for="/readyz")
    running.get("/")
    assert running.terminate() == 0
    messages = [record["message"] for record in running.log()]
    assert any("default: 1 of 100" in message for message in messages)
    assert any(word in message for message in messages for word in ("Starting granian", "Started parent process"))
    assert any(word in messages[-1] for word in ("Granian shutdown completed", "Stopping parent process"))
    assert running.errors.read_text() == ""


def test_plain_uvicorn_writes_only_json_to_stdout(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, command="uvicorn", workers=2, wait_for="/readyz")
    running.get("/")
    assert running.terminate() == 0
    assert any("default: 1 of 100" in record["message"] for record in running.log())


def test_refusals_are_added_up(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=1, limit=1, wait_for="/readyz")
    for _ in range(50):
        running.get("/")
    assert running.terminate() == 0
    refusals = [record for record in running.log() if "refused" in record["extra"]]
    assert sum(record["extra"]["refused"] for record in refusals) == 49
    assert {record["level"]["name"] for record in refusals} == {"WARNING"}
    times = [record["time"]["timestamp"] for record in refusals[:-1]]  # the last may come at the end of the process
    assert all(later - earlier > 0.9 for earlier, later in pairwise(times))


@pytest.mark.parametrize("quiet", [{"request_log": "off"}, {"log_level": "WARNING"}])
def test_the_request_log_can_be_turned_off(
    quiet: dict[str, str], empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, workers=1, wait_for="/readyz", **quiet)
    running.get("/")
    running.terminate()
    assert not [record for record in running.log() if "request_count" in record["extra"]]


def test_a_stopped_reader_of_the_service_does_not_stop_it(empty_valkey: RedisServer, tmp_path: Path) -> None:
    running = Service(tmp_path, empty_valkey.url, workers=1, limit=10**9)
    os.mkfifo(running.output)
    reader = os.open(running.output, os.O_RDONLY | os.O_NONBLOCK)
    running.start()
    try:
        for _ in range(20):  # far more lines than a pipe and the buffer hold
            history = asyncio.run(hammer(running.port, 16, [1] * 500))
            assert history.statuses() == {200: 500}
    finally:
        os.set_blocking(reader, True)
        assert running.process is not None
        running.process.terminate()
        with os.fdopen(reader) as lines:
            records = [json.loads(line)["record"] for line in lines]
        running.process.wait(60)
    claims = [record for record in records if "request_count" in record["extra"]]
    dropped = sum(record["extra"].get("dropped", 0) for record in records)
    assert dropped > 0
    assert 0 <= len(claims) + dropped - 10_000 < 50  # other lines may have been dropped too
    wait_until(lambda: running.process is not None and running.process.poll() is not None, "the service to end")
