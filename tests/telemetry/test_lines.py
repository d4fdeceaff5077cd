"""A line is one JSON object in Loguru's shape, and short enough to be written at once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from pythonricing.telemetry.writer import ATOMIC_WRITE
from tests.telemetry.support import run

RECORD = {
    *("elapsed", "exception", "extra", "file", "function", "level", "line", "message", "module", "name"),
    *("process", "thread", "time"),
}


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
    journal.scattered('tickets', [((7, 7), (12, 12))])
    journal.settled('tickets', 100, [(12, 2), (13, 1)], 0)
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
        {"counter": "tickets", "n": 2, "request_count": 12, "limit": 100, "numbers": [[7, 7], [12, 12]]},
        {"counter": "tickets", "n": 1, "request_count": 13, "limit": 100},
    ]
    assert claims[0]["record"]["level"]["name"] == "INFO"
    assert "tickets: 3 of 100" in claims[0]["text"]


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
    script = f"""
from pythonricing.settings import Settings
from pythonricing.telemetry import logs
writer = logs.configure(Settings())
{code}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    [line] = done.stdout.splitlines(keepends=True)
    assert len(line) <= ATOMIC_WRITE
    assert "[…]" in json.loads(line)["record"]["message"]
