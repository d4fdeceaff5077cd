"""`pythonricing watch` in a terminal, as a user ends it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.waiting import PATIENCE, wait_until
from tests.serve.commands import PROGRAM
from tests.serve.terminals import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


def ignore_signals() -> None:
    """What a child inherits under `nohup` and a shell's `&`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("before", [None, ignore_signals], ids=["default signals", "ignored signals"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_with_a_signal_and_gives_the_cursor_back(
    number: signal.Signals,
    before: Callable[[], None] | None,
    empty_valkey: RedisServer,
    service: Callable[..., Service],
) -> None:
    running = service(empty_valkey.url, "/readyz", workers=1)
    assert running.get("/")[0] == 200
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = subprocess.Popen(
        [PROGRAM, "watch", running.url], stdin=its, stdout=its, stderr=its, env=environment, preexec_fn=before
    )
    os.close(its)
    shown = b""

    def show() -> bytes:
        nonlocal shown
        while select.select([ours], [], [], 0)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # nobody has the terminal any more
                break
        return shown

    try:
        wait_until(lambda: b"default" in show(), "the counter to be shown")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    show()
    os.close(ours)
    assert HIDE_CURSOR in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert b"Traceback" not in shown


#: Ctrl-C while the first screen is drawn.
INTERRUPTED = """
import os, signal, sys
from pythonricing.serve import terminal
from pythonricing.serve.cli import main

draw = terminal.Screen.__rich_console__

def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return draw(*arguments)

terminal.Screen.__rich_console__ = interrupted
main(["watch", sys.argv[1]])
"""


def test_a_signal_during_the_first_drawing_gives_the_cursor_back_too(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", workers=1)
    with Terminal([sys.executable, "-c", INTERRUPTED, running.url], os.environ) as terminal:
        assert terminal.wait() == 0
        assert terminal.text.rindex(SHOW_CURSOR.decode()) > terminal.text.rindex(HIDE_CURSOR.decode())
        assert "Traceback" not in terminal.text
