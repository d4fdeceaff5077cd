"""Where a worker's time goes: a flame graph of one worker under load, by py-spy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from loadtests import tools
from loadtests.contenders import UNLIMITED, Contender
from loadtests.running import Running

if TYPE_CHECKING:
    from concurrent.futures import Future

    from loadtests.tools import Outcome, Tool

#: The share of a core from which on a server counts as loaded.
BUSY = 0.1


class ProfileError(Exception):
    """No profile could be made. Its text is one line."""


def profile(contender: Contender, tool: Tool, seconds: int, connections: int, output: Path) -> Path:
    """Load one worker with `tool` for some seconds and draw where its time went. Returns the SVG.

    Raises ProfileError, and what starting a contender or a tool raises.
    """
    spy = Path(sys.executable).with_name("py-spy")
    program = str(spy) if spy.exists() else shutil.which("py-spy")
    if program is None:
        raise ProfileError("py-spy is not installed: make test installs it")
    output.parent.mkdir(parents=True, exist_ok=True)
    with Running(contender, UNLIMITED) as running, ThreadPoolExecutor(1) as pool:
        load = tools.Load(connections=connections, requests=10_000_000, seconds=seconds + 5)
        worker = youngest(running.pid)
        generator = pool.submit(tools.run, tool, running.url, load)
        _wait_for_load(running, generator)
        done = subprocess.run(
            [
                *(program, "record", "--pid", str(worker), "--duration", str(seconds), "--rate", "500"),
                *("--threads", "--native", "--output", str(output)),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RUST_LOG": "error"},
        )
    if done.returncode != 0 or not output.exists():
        words = (done.stderr or done.stdout).strip().splitlines()
        raise ProfileError(f"py-spy could not look into the worker: {words[-1] if words else 'it said nothing'}")
    generator.result()
    return output


def _wait_for_load(running: Running, generator: Future[Outcome]) -> None:
    """Until the server has work to do."""
    before, since = running.usage(), time.monotonic()
    while not generator.done():
        time.sleep(0.25)
        usage, now = running.usage(), time.monotonic()
        if usage.cpu_since(before) > BUSY * (now - since):
            return
        before, since = usage, now


def youngest(pid: int) -> int:
    """The youngest process of a server: its worker, if it has one."""
    server = psutil.Process(pid)
    return int(max(server.children(recursive=True) or [server], key=psutil.Process.create_time).pid)
