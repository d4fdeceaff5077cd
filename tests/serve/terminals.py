"""A terminal, for programs that look whether they have one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

from loadtests.rig.service import default_signals
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class Terminal:
    """A program in a terminal of so many columns and lines.

    `text` is all that it has written, and `plain` that without colours.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], columns: int = 100, lines: int = 30
    ) -> None:
        self._ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command, stdin=its, stdout=its, stderr=its, env=kept | {"TERM": "xterm"}, preexec_fn=default_signals
        )
        os.close(its)
        self._read = b""

    @property
    def text(self) -> str:
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self._read += os.read(self._ours, 65536)
            except OSError:  # nobody has the terminal any more
                break
        return self._read.decode(errors="replace").replace("\r\n", "\n")

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.plain, f"{words!r} on the terminal")

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status, once the program has ended; what it writes meanwhile is read."""
        wait_until(lambda: self.plain is not None and self.process.poll() is not None, "the program to end", PATIENCE)
        return self.process.wait()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self._ours)
