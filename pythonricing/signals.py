"""Signals: the service learns of its end at once, and the server as before."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def on_terminate(act: Callable[[], None]) -> None:
    """Call `act` as soon as SIGTERM or SIGINT arrives, and leave the rest to the server's own handler.

    An event loop's handler is woken through a file descriptor that the interpreter writes to for any handler, so it
    runs as well as the one set here. But uvloop listens there only while it runs: a signal that comes while the server
    gets ready between two runs is raised again in the next one.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(received: int, frame: Any, before: Any = before) -> None:
            act()
            if not loop.is_running() and not loop.is_closed():
                loop.call_soon(signal.raise_signal, received)
            if callable(before):
                before(received, frame)

        signal.signal(number, handle)
