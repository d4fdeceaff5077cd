"""Ports that nobody uses, and waiting for facts."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds for which the tests wait for anything: long, because machines may be slow; never a measure of speed.
PATIENCE = 60.0


def _shuffled_ports() -> Iterator[int]:
    """This process's share of the ports, so that tests which run side by side never take the same one."""
    first = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(range(10_000 + first, 32_000, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    random.shuffle(ports)
    return itertools.cycle(ports)


PORTS = _shuffled_ports()


def free_port() -> int:
    """A port that nobody uses; outside the range from which clients get theirs, so that it stays free for a restart."""
    while True:
        port = next(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def port_is_taken(port: int) -> bool:
    """Whether something listens there, even with SO_REUSEPORT, where a second server would silently share."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for `condition` to return something true, and return it."""
    deadline = time.monotonic() + patience
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience} s in vain for {what}")
        time.sleep(0.02)
