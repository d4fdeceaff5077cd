"""What a comparison shows while it runs."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

#: Seconds between two lines where the output is no terminal.
PAUSE = 10.0


class Screen:
    """A table that fills, with the time left; where the output is no terminal, a line now and then."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self._task = self._bar.add_task("", phase="", total=1)
        self._last: dict[tuple[str, int], dict[str, Any]] = {}
        self._steps, self._done, self._begun, self._said = 1, 0, 0.0, 0.0
        self.live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def phase(self, text: str, steps: int) -> None:
        self._bar.reset(self._task, total=steps, phase=text, description="")
        if not self.console.is_terminal:
            self.console.print(f"{text}: {steps} steps", highlight=False)
        self._steps, self._done = steps, -1
        self._begun = self._said = time.monotonic()

    def step(self, text: str) -> None:
        self._done += 1
        self._bar.update(self._task, advance=1 if self._done else 0, description=text)
        now = time.monotonic()
        if self._done and now - self._said > PAUSE and not self.console.is_terminal:
            self._said = now
            left = (now - self._begun) / self._done * (self._steps - self._done)
            self.console.print(f"{self._done} of {self._steps}, about {max(0, left):.0f} s left", highlight=False)

    def measured(self, run: dict[str, Any]) -> None:
        self._last[run["key"], run["pair"]] = run

    def trouble(self, text: str) -> None:
        self.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        screen = Table.grid()
        if self._last:
            table = Table("contender", "slice", "requests/s", "CPU µs/request")
            for run in list(self._last.values())[-max(5, self.console.height - 8) :]:
                rate, cpu = (
                    f"{run['requests_per_second']:,.0f}",
                    "-" if run["cpu_us"] is None else f"{run['cpu_us']:.1f}",
                )
                table.add_row(run["key"], str(run["slice"]), rate, cpu)
            screen.add_row(table)
        screen.add_row(self._bar)
        return screen
