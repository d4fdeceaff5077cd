"""Every line on stdout is one JSON object in Loguru's shape; a reader that stops reading stops nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from pythonricing.telemetry.writer import ATOMIC_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

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
