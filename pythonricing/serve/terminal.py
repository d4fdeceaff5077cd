"""`pythonricing watch`: the live page for a terminal, fed by the same events."""

from __future__ import annotations

import http.client
import signal
import time
from collections import deque
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pythonricing.telemetry.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from pythonricing.telemetry.events import Shown

#: Seconds without an event after which the connection is made anew, and between two attempts.
SILENCE = 5.0
PAUSE = 1.0
#: Events in the line of the last minute.
MINUTE = 60
BLOCKS = " ▁▂▃▄▅▆▇█"


class NoEvents(Exception):
    """There is nothing to watch at this address. Its text is one line for the user."""


def watch(url: str) -> None:
    """Show the counters of the service at `url` until SIGINT or SIGTERM. Raises KeyboardInterrupt, NoEvents.

    Also where SIGINT was to be ignored, as `nohup` and a shell's `&` leave it; the cursor comes back either way.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    screen = Screen(url)
    with Live(screen.render(), console=Console(), auto_refresh=False) as live:
        for event in events(f"{url.rstrip('/')}/watch/events"):
            screen.take(event)
            live.update(screen.render(), refresh=True)


def events(url: str) -> Iterator[Event | None]:
    """The events of a stream, connecting again whenever it ends; None while there is no connection."""
    ever = False
    while True:
        try:
            with urlopen(Request(url, headers={"Accept": "text/event-stream"}), timeout=SILENCE) as stream:
                for line in stream:
                    if line.startswith(b"data: "):
                        ever = True
                        yield msgspec.json.decode(line[6:], type=Event)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not ever and not (isinstance(error, HTTPError) and error.code == 503):
                raise NoEvents(f"{url}: {error}") from None
        yield None
        time.sleep(PAUSE)


class Screen:
    """What is on the screen: the newest event, and the rates that follow from the one before."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._event: Event | None = None
        self._trouble = "connecting …"
        self._rates: dict[str, tuple[float, float]] = {}
        self._minute: deque[tuple[float, float]] = deque(maxlen=MINUTE)

    def take(self, event: Event | None) -> None:
        if event is None or event.counters is None:
            self._trouble = "no connection, trying again …" if event is None else "the store doesn't answer"
            return
        self._trouble = ""
        before, self._event = self._event, event
        if before is None:
            return
        seconds = max(0.2, (event.time - before.time) / 1000)
        known = {counter.name: counter for counter in before.counters or ()}
        same_server = before.server == event.server
        self._rates = {}
        for counter in event.counters:
            old = known.get(counter.name)
            taken = counter.count - (old.count if old is not None and old.epoch == counter.epoch else 0)
            refused = counter.refused - old.refused if old is not None and same_server else 0
            self._rates[counter.name] = (max(0, taken) / seconds, max(0, refused) / seconds)
        refused = max(0, event.refused - before.refused) if same_server else 0
        self._minute.append((sum(rate for rate, _ in self._rates.values()), refused / seconds))

    def render(self) -> RenderableType:
        table = Table(box=None, expand=True, header_style="dim")
        table.add_column("counter", ratio=2, overflow="fold")
        table.add_column("", ratio=3)
        for column in ("count", "limit", "admitted/s", "refused/s"):
            table.add_column(column, justify="right")
        table.add_column("")
        for counter in (self._event and self._event.counters) or ():
            admitted, refused = self._rates.get(counter.name, (0.0, 0.0))
            bar = ProgressBar(
                max(1, counter.limit),
                counter.count if counter.limit else 1,
                complete_style="green",
                finished_style="yellow",
            )
            numbers = (f"{counter.count:,}", f"{counter.limit:,}", f"{admitted:,.0f}", f"{refused:,.0f}")
            table.add_row(counter.name, bar, *numbers, _state(counter))
        head = Text.assemble(("pythonricing ", "bold"), (self._url, "dim"))
        head.append(f"  {self._trouble}" if self._trouble else "  live", "bold red" if self._trouble else "dim")
        return Group(head, self._line(0, "admitted", "green"), self._line(1, "refused", "yellow"), table)

    def _line(self, index: int, name: str, style: str) -> Text:
        rates = [rates[index] for rates in self._minute] or [0.0]
        peak = max(1.0, *rates)
        blocks = "".join(BLOCKS[round(rate / peak * (len(BLOCKS) - 1))] for rate in rates)
        return Text.assemble(f"{name:8} {rates[-1]:>7,.0f}/s ", (blocks.rjust(MINUTE), style), no_wrap=True)


def _state(counter: Shown) -> Text:
    if counter.lost:
        return Text("STATE LOST", "bold red reverse")
    return Text("HALTED", "bold yellow reverse") if counter.count >= counter.limit else Text("open", "dim")
