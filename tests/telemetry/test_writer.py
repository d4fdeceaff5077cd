"""Lines reach stdout whole, a reader that stops reading stops nothing else, and a write that fails is tried again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from loadtests.rig.clients import hammer
from loadtests.rig.service import Service, environment
from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.telemetry.writer import MAX_BUFFERED, Writer

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.rig.redis import RedisServer


def test_lines_of_several_processes_never_interleave(tmp_path: Path) -> None:
    script = """
import sys
from loguru import logger
from pythonricing.settings import Settings
from pythonricing.telemetry import logs
logs.configure(Settings())
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
    for _ in range(count):
        writer.write([line])
    assert writer.dropped > 0
    kept = count - writer.dropped
    read = 0
    while read < kept:
        read += os.read(reader, 1 << 16).count(b"\n")
    assert read == kept
    os.close(reader)
    writer.close()


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


def test_a_write_that_fails_is_tried_again_and_what_was_dropped_is_said(tmp_path: Path) -> None:
    """A file at its limit stands for a full disk: it fails in the same way, and it passes."""
    script = """
import pathlib, resource, sys, time
from loguru import logger
from pythonricing.settings import Settings
from pythonricing.telemetry import logs

output = pathlib.Path(sys.argv[1])
writer = logs.configure(Settings())
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_500, hard))
for number in range(2500):
    logger.info('{} {}', 'x' * 900, number)
assert writer.dropped
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
while 'log lines dropped' not in output.read_text():
    time.sleep(0.05)
logger.info('and on')
"""
    path = tmp_path / "log"
    with path.open("ab") as output:
        command = [sys.executable, "-c", script, str(path)]
        subprocess.run(command, stdout=output, env=environment({}), check=True, timeout=PATIENCE)
    *kept, said, last = [json.loads(line)["record"] for line in path.read_text().splitlines()]
    assert len(kept) + said["extra"]["dropped"] == 2500
    assert "File too large" in said["message"]
    assert last["message"] == "and on"


def test_lines_that_nobody_will_read_are_counted() -> None:
    reader, writing = os.pipe()
    os.close(reader)
    writer = Writer(writing)
    writer.write([b"one\n", b"two\n"])
    wait_until(lambda: writer.dropped == 2, "both to be counted")
    writer.write([b"three\n"])
    assert writer.dropped == 3
    writer.close()
