"""What a terminal is told once the service answers: where to look, what to try, how to stop it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from pythonricing.serve.address import Address

#: Seconds for which the service is waited for, and between two questions.
PATIENCE, INTERVAL = 30.0, 0.05


def welcome(address: Address, token: Path | None) -> None:
    """Wait until the service is ready and say what to do next; `token` is the file of a token that was made for it."""
    end = time.monotonic() + PATIENCE
    while not _ready(address) and time.monotonic() < end:
        time.sleep(INTERVAL)
    base, curl = (address.url, "curl") if address.uds is None else ("http://here", f"curl --unix-socket {address.uds}")
    lines = []
    if token is not None:
        lines.append(f"The token for PUT and DELETE is in {token}")
    watch = f"{base}/watch" if address.uds is None else f"{curl} --no-buffer {base}/watch/events"
    lines += [f"Watch the counters:  {watch}", f"Claim a number:      {curl} {base}/", "Stop the service:    Ctrl-C"]
    click.echo("\n" + "\n".join(lines) + "\n", err=True)


def _ready(address: Address) -> bool:
    with suppress(OSError), address.connect(1.0) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        return b" 200 " in client.recv(64)
    return False
