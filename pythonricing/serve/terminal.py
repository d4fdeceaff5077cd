"""`pythonricing watch`: the live page for a terminal, fed by the same events; a line a second anywhere else."""

from __future__ import annotations

import http.client
import signal
import time
from base64 import b64encode
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pythonricing.telemetry.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import ConsoleOptions, RenderableType, RenderResult

    from pythonricing.telemetry.events import Shown
    from pythonricing.telemetry.history import Second

#: Seconds without an event after which the connection is made anew, and between two attempts.
SILENCE = 5.0
PAUSE = 1.0
#: Seconds in the line of the last minute, and blocks for how much there was in each.
MINUTE = 60
BLOCKS = " ▁▂▃▄▅▆▇█"
#: Columns of a bar at least, and of the gap between two columns.
BAR, GAP = 10, 2
#: Open counters in a line, where there is no terminal.
NAMED = 8
AWAY, ALONE = "the store doesn't answer", "no connection, trying again …"


class NoEvents(Exception):
    """There is nothing to watch at this address. Its text is one line for the user."""


def watch(url: str) -> None:
    """Show the counters of the service at `url` until SIGINT or SIGTERM. Raises KeyboardInterrupt, NoEvents.

    Also where SIGINT was to be ignored, as `nohup` and a shell's `&` leave it; the cursor comes back either way.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    console = Console()
    address, user = service(url)
    screen = Screen(address)
    told = events(address, user)
    screen.take(next(told))  # where there is nothing to watch, nothing is drawn
    if not console.is_terminal or console.is_dumb_terminal:
        print(screen.line(), flush=True)
        for event in told:
            screen.take(event)
            print(screen.line(), flush=True)
    try:
        with Live(screen, console=console, auto_refresh=False) as live:
            for event in told:
                screen.take(event)
                live.refresh()
    finally:
        console.show_cursor()  # a signal may come while the first screen is drawn, which Live doesn't expect


def service(url: str) -> tuple[str, str]:
    """The service's address, given that or its live page's, with a scheme or without; and `user:password`, if any."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    user, _, host = parts.netloc.rpartition("@")  # the address is shown, a password isn't
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/").removesuffix("/watch"), "", "")), unquote(user)


def events(url: str, user: str = "") -> Iterator[Event | None]:
    """The events of a service, connecting again whenever they end; None while there is no connection."""
    ever = False
    headers = {"Accept": "text/event-stream"}
    if user:  # whoever stands in front of the service wants to know
        headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
    while True:
        try:
            with urlopen(Request(f"{url}/watch/events", headers=headers), timeout=SILENCE) as told:
                for line in told:
                    if line.startswith(b"data: "):
                        ever = True
                        yield msgspec.json.decode(line[6:], type=Event)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not ever and not (isinstance(error, HTTPError) and error.code == 503):
                raise NoEvents(_why(url, error)) from None
        yield None
        time.sleep(PAUSE)


def _why(url: str, error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"{url} has no live page: it answers {error.code} {error.reason}"
    reason = error.reason if isinstance(error, URLError) else error
    words = (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__
    if not words[:2].isupper():  # "URL …" stays as it is
        words = words[0].lower() + words[1:]
    return f"can't watch {url}: {words}"


class Screen:
    """What is on the screen: the newest state of each counter, and the rates that follow from the events."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._event: Event | None = None
        self._trouble = "connecting …"
        self._counters: dict[str, Shown] = {}
        #: Claims admitted and refused a second, of the counters that had any; and how busy counters are.
        self._rates: dict[str, tuple[float, float]] = {}
        self._busy: dict[str, float] = {}
        self._seconds: dict[int, Second] = {}

    def take(self, event: Event | None) -> None:
        if event is None:
            self._trouble = ALONE
            return
        self._trouble = AWAY if event.away else ""
        before, self._event = self._event, event
        same_server = before is not None and before.server == event.server
        span = max(0.2, (event.time - before.time) / 1000) if before is not None else 0.0
        known = self._counters
        self._counters = {} if event.whole else {name: known[name] for name in known.keys() - set(event.gone)}
        self._rates = {}
        for now in event.counters:
            self._counters[now.name] = now
            if same_server and (old := known.get(now.name)) is not None:
                claims = (now.admitted - old.admitted, now.refused - old.refused)
                self._rates[now.name] = (max(0, claims[0]) / span, max(0, claims[1]) / span)
        busy = self._busy  # a mean in which the last five seconds weigh most, so that rows don't jump
        self._busy = {name: 0.8 * busy.get(name, 0) + 0.2 * sum(self._rates.get(name, ())) for name in self._counters}
        if not same_server:
            self._seconds = {}
        self._seconds |= {second[0]: second for second in event.seconds}
        self._seconds = {at: second for at, second in self._seconds.items() if at >= self._over() - MINUTE}

    def line(self) -> str:
        """What there is in one line."""
        now = time.strftime("%H:%M:%S")
        if self._trouble or self._event is None:
            return f"{now}  {self._trouble}"
        urgent = [each for each in self._sorted() if _state(each) != "open"]
        others = [each for each in self._sorted() if _state(each) == "open"][:NAMED]
        shown = [f"{each.name} {each.count}/{each.limit} {_state(each)}" for each in urgent]
        shown += [f"{each.name} {each.count}/{each.limit}" for each in others]
        if more := len(self._counters) - len(shown):
            shown.append(f"{more} more")
        _, admitted, refused = self._minute()[-1]
        return f"{now}  {admitted} admitted/s, {refused} refused/s: {', '.join(shown) or 'no counter'}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = Text.assemble(("pythonricing ", "bold"), (self.url, "dim"))
        head.append(f"  {self._trouble}" if self._trouble else "  live", "bold red" if self._trouble else "dim")
        lines: list[RenderableType] = [head]
        width, height = options.max_width, console.height
        lines += [self._spark(1, "admitted", "green", width), self._spark(2, "refused", "yellow", width)]
        counters = self._sorted()
        states = [_state(each) for each in counters]
        summary = Text(f"{len(counters):,} counters" if len(counters) != 1 else "1 counter")
        for state, style in (("lost", "bold red"), ("halted", "bold yellow")):
            if many := states.count(state):
                summary.append(f", {many:,} {state}", style)
        lines.append(summary)
        for each in lines:
            if isinstance(each, Text):
                height -= len(each.wrap(console, width))
            yield each
        yield from self._rows(counters, width, height - 1)  # the cursor stands in the last line

    def _sorted(self) -> list[Shown]:
        """What needs attention first, then the busiest."""
        rank = {"lost": 0, "halted": 1, "open": 2}
        return sorted(
            self._counters.values(), key=lambda each: (rank[_state(each)], -self._busy.get(each.name, 0), each.name)
        )

    def _rows(self, counters: list[Shown], width: int, height: int) -> RenderResult:
        """A row for each counter that fits, in as many columns as fit; names stay whole."""
        urgent = [each for each in counters if _state(each) != "open"]
        if len(urgent) > height - 2:
            yield from self._names(urgent, width, height)
            return
        shown = counters[: max(1, height - 2)]  # besides the header, and how many more there are
        rows = [self._cells(each) for each in shown]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
        titles = ("counter", "count", "limit", "admitted/s", "refused/s", "")
        columns = [0, 1, 2, 3, 4, 5]
        while len(columns) > 3:
            needed = sum(max(widths[each], len(titles[each])) + GAP for each in columns) - GAP
            if needed <= width:
                break
            columns.remove(columns[-2])  # refused/s, admitted/s, limit
        else:
            yield from self._stacked(shown, width, height)
            return
        table = Table(box=None, expand=True, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
        bars = len(columns) == 6 and needed + BAR + GAP <= width
        for each in columns:
            table.add_column(
                titles[each], justify="right" if 0 < each < 5 else "left", no_wrap=True, min_width=widths[each] or None
            )
            if each == 0 and bars:
                table.add_column("", ratio=1)
        for counter, row in zip(shown, rows, strict=True):
            cells: list[RenderableType] = [Text(row[each], _style(counter) if each == 5 else "") for each in columns]
            if bars:
                cells.insert(1, _bar(counter))
            table.add_row(*cells)
        yield table
        if len(counters) > len(shown):
            yield Text(f"… and {len(counters) - len(shown):,} more", "dim")

    def _stacked(self, shown: Sequence[Shown], width: int, height: int) -> RenderResult:
        """A name in a line or more of its own, and what there is to say under it."""
        for counter in shown:
            name = [counter.name[start : start + width] for start in range(0, len(counter.name), width)]
            beneath = _packed([f"{counter.count:,}", f"of {counter.limit:,}", *self._words(counter).split()], width)
            if height < len(name) + len(beneath) + 1:
                yield Text("… and more", "dim")
                return
            height -= len(name) + len(beneath)
            for line in name:
                yield Text(line)
            for line in beneath:
                yield Text(line, _style(counter), no_wrap=True)

    def _names(self, urgent: list[Shown], width: int, height: int) -> RenderResult:
        """Where not even those that need attention have a row each: their names."""
        for state in ("lost", "halted"):
            names = [each.name for each in urgent if _state(each) == state]
            lines = _packed([f"{state}:", *", ".join(names).split()], width) if names else []
            for line in lines[: max(1, height)]:
                yield Text(line, "bold red" if state == "lost" else "bold yellow", no_wrap=True)
            height -= len(lines)

    def _cells(self, counter: Shown) -> tuple[str, ...]:
        admitted, refused = self._rates.get(counter.name, (0.0, 0.0))
        return (
            *(counter.name, f"{counter.count:,}", f"{counter.limit:,}", f"{admitted:,.0f}", f"{refused:,.0f}"),
            self._words(counter),
        )

    def _words(self, counter: Shown) -> str:
        words = {"lost": "STATE LOST", "halted": "HALTED", "open": "open"}[_state(counter)]
        words += f", {counter.leased:,} leased" if counter.leased else ""
        words += f", {counter.held:,} held" if counter.held else ""
        if counter.renews and self._event is not None:
            words += f", renews in {timedelta(seconds=max(0, (counter.renews - self._event.time) // 1000))}"
        return words

    def _over(self) -> int:
        """The last second that was over when the newest event was made."""
        return self._event.time // 1000 - 1 if self._event is not None else 0

    def _minute(self) -> list[Second]:
        last = max(self._over(), *self._seconds) if self._seconds else self._over()
        return [self._seconds.get(at, (at, 0, 0)) for at in range(last - MINUTE + 1, last + 1)]

    def _spark(self, index: int, name: str, style: str, width: int) -> Text:
        rates = [second[index] for second in self._minute()]
        head = f"{name:8} {rates[-1]:>7,}/s "
        peak = max(1, *rates)
        blocks = "".join(BLOCKS[round(rate / peak * (len(BLOCKS) - 1))] for rate in rates)
        return Text.assemble(head, (blocks[-max(1, width - len(head)) :], style), no_wrap=True, overflow="crop")


def _packed(words: Sequence[str], width: int) -> list[str]:
    """Words in as few lines as they fit into, set in from the edge."""
    lines = [f"  {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return lines


def _state(counter: Shown) -> str:
    return "lost" if counter.lost else "halted" if counter.count >= counter.limit else "open"


def _style(counter: Shown) -> str:
    return {"lost": "bold red", "halted": "bold yellow", "open": "dim"}[_state(counter)]


def _bar(counter: Shown) -> ProgressBar:
    return ProgressBar(
        max(1, counter.limit), counter.count if counter.limit else 1, complete_style="green", finished_style="yellow"
    )
