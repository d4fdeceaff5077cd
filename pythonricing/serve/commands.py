"""The commands about counters: status, list, set, reset, delete. They ask the store itself, not a service."""

from __future__ import annotations

import shutil
import sys
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import DEFAULT, DEFAULT_LIMIT, NAME, BadRules, Counter, NoSuchCounter
from pythonricing.serve.failure import Failure
from pythonricing.serve.opening import opening
from pythonricing.settings import MAX_COUNT, PREFIX
from pythonricing.web.counters import MAX_PAGE, CounterView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pythonricing.counting.store import Store
    from pythonricing.settings import Settings

STORE = click.option("--store", help=f"Store URL; overrides {PREFIX}STORE.  [default: the embedded Valkey]")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def about_counters(act: Callable[..., Any]) -> click.Command:
    """A command with the options that all of these have."""
    return click.command()(STORE(JSON(act)))


@about_counters
@click.argument("name", default=DEFAULT)
def status(name: str, store: str | None, as_json: bool) -> None:
    """Print the state of the counter NAME."""
    with opening(store=store) as opened:

        async def read(store: Store) -> Counter:
            try:
                return await store.read(name)
            except NoSuchCounter:
                if name != DEFAULT:
                    raise
                # It is created by its first claim.
                limit = opened.settings.limit
                return Counter(name, 0, DEFAULT_LIMIT if limit is None else limit, 0)

        show(opened.act(read, name), as_json)


@about_counters
def list_(store: str | None, as_json: bool) -> None:
    """Print all counters by name."""

    async def browse(store: Store) -> list[Counter]:
        counters: list[Counter] = []
        while page := await store.browse(MAX_PAGE, counters[-1].name if counters else ""):
            counters += page
        return counters

    with opening(store=store) as opened:
        counters = opened.act(browse)
    if as_json:
        click.echo(msgspec.json.encode([CounterView.of(counter) for counter in counters]))
    elif counters:
        click.echo(table(counters))
    else:
        click.echo("there are no counters yet")


@about_counters
@click.argument("name")
@click.option("--limit", type=click.IntRange(0, MAX_COUNT), required=True, help="How many numbers it has.")
@click.option("--most", type=click.IntRange(1, MAX_COUNT), help="The largest claim.  [default: no bound]")
@click.option("--each", type=click.IntRange(1, MAX_COUNT), help="How many one claimant may own.  [default: no bound]")
@click.option("--every", default="", help='"day", "week", "month", or "90s", "15m", "1h", "1d".  [default: for ever]')
@click.option("--zone", default="", help="The time zone of days, weeks and months.  [default: UTC]")
def set_(
    name: str,
    limit: int,
    most: int | None,
    each: int | None,
    every: str,
    zone: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Create the counter NAME, or change its limit and its rules and keep its count."""
    if not NAME.fullmatch(name):
        raise Failure(f"{name!r} is no name: 1 to 64 of the characters A-Z a-z 0-9 . _ -, and not . or ..")

    async def put(counters: Counters, settings: Settings) -> Counter:
        try:
            return (await counters.put(name, limit, most or 0, each or 0, every, zone))[0]
        except BadRules as error:
            raise Failure(str(error)) from None

    show(_change(name, store, put), as_json)


@about_counters
@click.argument("name", default=DEFAULT)
def reset(name: str, store: str | None, as_json: bool) -> None:
    """Start the counter NAME over at 0, also after its store has lost data; its limit stays."""

    async def restart(counters: Counters, settings: Settings) -> Counter:
        return await counters.restart(name, settings.limit if name == DEFAULT else None)

    show(_change(name, store, restart), as_json)


@about_counters
@click.argument("name")
def delete(name: str, store: str | None, as_json: bool) -> None:
    """Forget the counter NAME; 'default' comes back at 0."""

    async def forget(counters: Counters, settings: Settings) -> None:
        await counters.delete(name)

    _change(name, store, forget)
    click.echo(msgspec.json.encode({"name": name, "deleted": True}) if as_json else f"{name}: deleted")


#: By the names that users type.
COMMANDS = {"status": status, "list": list_, "set": set_, "reset": reset, "delete": delete}


def _change(name: str, store: str | None, act: Callable[[Counters, Settings], Any]) -> Any:
    with opening(store=store) as opened:

        async def change(store: Store) -> Any:
            counters = Counters(store, Journal(), timeout=opened.settings.store_timeout)
            await counters.open()
            return await act(counters, opened.settings)

        return opened.act(change, name)


def show(counter: Counter, as_json: bool) -> None:
    """Print one counter."""
    view = CounterView.of(counter)
    halted = ", halted" if view.halted else f", {view.leased} of them leased" if view.leased else ""
    line = f"{view.name}: {view.count} of {view.limit}{halted}{''.join(f', {word}' for word in rules(counter))}"
    if not as_json and sys.stdout.isatty():
        line = _wrapped(line, shutil.get_terminal_size().columns)
    click.echo(msgspec.json.encode(view) if as_json else line)


def rules(counter: Counter) -> list[str]:
    """What there is to say of holds, claimants, the largest claim and renewal."""
    said = [f"{counter.held:,} held"] if counter.held else []
    said += [f"{counter.given_back:,} given back"] if counter.given_back else []
    said += [f"{counter.each:,} for each"] if counter.each else []
    said += [f"{counter.most:,} at once"] if counter.most else []
    if counter.ends:
        renews = datetime.fromtimestamp(counter.ends // 1_000_000, UTC)
        where = f" in {counter.zone}" if counter.zone else ""
        said += [f"renews every {counter.every}{where}", f"next {renews:%Y-%m-%d %H:%M:%S} UTC"]
    return said


def table(counters: Sequence[Counter]) -> str:
    """The counters below each other; in colour where they need attention, which click leaves out on a pipe."""
    rows = [("COUNTER", "COUNT", "LIMIT", "LEFT", "", "")]
    for counter in counters:
        view = CounterView.of(counter)
        state = "LOST" if view.lost else "halted" if view.halted else ""
        said = ", ".join(rules(counter))
        rows.append((view.name, f"{view.count:,}", f"{view.limit:,}", f"{view.remaining:,}", state, said))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and sum(widths) + 2 * (len(widths) - 1) > columns:
        # Names stay whole, as in `watch`.
        stacked = []
        for name, count, limit, left, state, said in rows[1:]:
            told = ", ".join(filter(None, (f"{count} of {limit}", f"{left} left", state, said)))
            stacked.append(f"{name}\n{_wrapped(told, columns, '  ').replace(state, _styled(state, ''), 1)}")
        return "\n".join(stacked)
    lines = []
    for name, *numbers, state, said in rows:
        cells = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False))
        lines.append("  ".join([name.ljust(widths[0]), *cells]) + _styled(state, "  ") + (said and f"  {said}"))
    return "\n".join(lines)


def _wrapped(line: str, columns: int, before: str = "") -> str:
    """A line, broken after commas and else between words, for a terminal of so many columns."""
    lines: list[str] = []
    for part in line.split(", "):
        if lines and len(lines[-1]) + 2 + len(part) < columns:
            lines[-1] += f", {part}"
            continue
        if lines:
            lines[-1] += ","
        indent = before or ("  " if lines else "")
        wrapper = textwrap.TextWrapper(max(1, columns - 1), indent, f"{indent}  ", break_long_words=False)
        wrapper.break_on_hyphens = False
        lines += wrapper.wrap(part)
    return "\n".join(lines)


def _styled(state: str, before: str) -> str:
    return before + click.style(state, fg={"LOST": "red", "halted": "yellow"}[state], bold=True) if state else ""
