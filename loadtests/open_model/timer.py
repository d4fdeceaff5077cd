"""Waking at a time to some microseconds: an event loop's own timers know milliseconds."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: linux/timerfd.h, linux/prctl.h
_TFD_FLAGS, _TFD_TIMER_ABSTIME, _PR_SET_TIMERSLACK = os.O_NONBLOCK | os.O_CLOEXEC, 1, 29


class Timer:
    """Calls `wake` at the moments that `at` is told, in nanoseconds of time.monotonic_ns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._file: int | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
            file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_FLAGS)
            if file >= 0:
                self._file = file
                loop.add_reader(file, self._read)

    def at(self, moment: int) -> None:
        if self._file is None:
            self._loop.call_later(max(0, moment - time.monotonic_ns()) / 1e9, self._wake)
            return
        # struct itimerspec: an interval of 0, and the moment in seconds and nanoseconds.
        value = (ctypes.c_long * 4)(0, 0, *divmod(max(1, moment), 1_000_000_000))
        self._libc.timerfd_settime(self._file, _TFD_TIMER_ABSTIME, value, None)

    def _read(self) -> None:
        assert self._file is not None
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return
        self._wake()

    def close(self) -> None:
        if self._file is not None:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = None
