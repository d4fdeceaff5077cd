"""Every line of every process on stdout is JSON, whoever wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.telemetry.support import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


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
