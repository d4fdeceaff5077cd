"""Start programs so that none outlives who started it, and end them with all that they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Unavailable(Exception):
    """A program or package that is needed is not here. Its text says what, and what would bring it."""


def _begin() -> None:
    """In the child: signals as in a terminal, and SIGTERM when the parent ends, however it ends (prctl(2)).

    An ignored SIGINT, as under `nohup` or a shell's `&`, would be inherited.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def spawn(
    command: Sequence[str | Path],
    *,
    output: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    **identity: Any,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, its stdout and stderr going to the file descriptor `output`.

    Ctrl-C then reaches the caller alone, which stops its programs in order; `stop` reaches all their children.
    `identity` is Popen's: `user`, `extra_groups`.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
        preexec_fn=_begin,
        **identity,
    )


def stop(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """End a program that `spawn` started and everything it started: SIGTERM, after `patience` seconds SIGKILL."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
