"""`pythonricing watch`: what the terminal shows, and when it ends."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.serve.terminal import Screen
from pythonricing.telemetry.events import Event, Shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

PROGRAM = str(Path(sys.executable).with_name("pythonricing"))


def event(count: int, refused: int, seconds: int, epoch: int = 1, server: int = 1) -> Event:
    return Event(seconds * 1000, server, refused, [Shown("default", count, 100, epoch, False, refused)])


def text_of(screen: Screen) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(screen.render())
    return console.export_text()


def test_the_terminal_shows_counts_rates_and_what_is_halted() -> None:
    screen = Screen("http://here")
    screen.take(event(0, 0, 0))
    screen.take(event(60, 8, 2))
    line = text_of(screen).splitlines()[-1].split()
    assert (line[0], line[-5:]) == ("default", ["60", "100", "30", "4", "open"])
    screen.take(event(100, 8, 3))
    assert "HALTED" in text_of(screen)
    screen.take(event(10, 5, 4, epoch=2, server=2))  # a reset, told by another server
    assert text_of(screen).splitlines()[-1].split()[-5:] == ["10", "100", "10", "0", "open"]
    screen.take(None)
    assert "no connection" in text_of(screen)


def test_watch_in_a_terminal_connects_again_and_ends_with_ctrl_c(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, workers=2, limit=3, wait_for="/readyz")
    for _ in range(5):
        running.get("/")
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "watch", running.url],
        stdout=terminal,
        stderr=subprocess.PIPE,
        # Whatever started the tests may ignore it, and then children do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(terminal)
    os.set_blocking(screen, False)
    shown = ""

    def shows(words: str) -> bool:
        """Whether the words have come to the screen; what is before them is not looked at again."""
        nonlocal shown
        with suppress(OSError):
            shown += os.read(screen, 1 << 16).decode(errors="replace")
        _, found, after = shown.partition(words)
        if found:
            shown = after
        return bool(found)

    try:
        wait_until(lambda: shows("HALTED"), "the counter to be shown")
        running.terminate()
        wait_until(lambda: shows("no connection"), "the end to be noticed")
        service(empty_valkey.url, workers=2, port=running.port, wait_for="/readyz")
        wait_until(lambda: shows("  live"), "another connection")
        wait_until(lambda: shows("HALTED"), "the counter to be shown again")
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        os.close(screen)
    assert (process.returncode, errors) == (0, b"")


def test_watch_without_a_service_is_one_line() -> None:
    done = subprocess.run([PROGRAM, "watch", "http://127.0.0.1:1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "refused" in done.stderr
