"""`python -m loadtests compare`, `headline` and `report`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from loadtests import report
from loadtests.contenders import PEERS, ROOT, SERVERS, Contender, ContenderError, Unavailable
from loadtests.measure import SCENARIOS, Lab, Options, Results
from loadtests.profile import ProfileError, profile
from loadtests.publish import PublishError, publish
from loadtests.tools import TOOLS, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

SERVICE = [f"{server}+{store}" for store in ("redis", "memory", "postgresql") for server in SERVERS]
OTHERS = ["read-then-write+uvicorn", "fastapi+uvicorn", "constant+granian", "constant+uvicorn"]
QUICK = ["granian+redis", "uvicorn+redis", *OTHERS]
HEADLINE = ["granian+redis", "granian+memory", "uvicorn+redis", "uvicorn+memory", "read-then-write+uvicorn"]

#: `--quick` begins no run after this many seconds; it then still has to stop and to draw.
QUICK_BUDGET = 85.0

INTERRUPTED = 130


class Numbers(click.ParamType):  # type: ignore[type-arg]  # the oldest click that serves has no type arguments
    """Whole numbers with commas between them; the first is the base."""

    name = "N,N,…"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not like 2 or 2,1,4", param, ctx)
        if min(numbers) < 1:
            self.fail("has to be 1 or more", param, ctx)
        return numbers


class Spelled(click.ParamType):  # type: ignore[type-arg]
    """A contender: `granian+redis`."""

    name = "CONTENDER"

    def convert(self, value: Any, param: Any, ctx: Any) -> Contender:
        if isinstance(value, Contender):
            return value
        try:
            return Contender.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Screen:
    """A table that fills while the comparison runs; where the output is no terminal, a line for what happens."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self._task = self._bar.add_task("", phase="", total=1)
        self._last: dict[tuple[str, str, int], dict[str, Any]] = {}
        self.live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def phase(self, text: str, steps: int) -> None:
        self._bar.reset(self._task, total=steps, phase=text, description="")
        if not self.console.is_terminal:
            self.console.print(f"{text}: {steps} steps", highlight=False)
        self._begun = False

    def step(self, text: str) -> None:
        self._bar.update(self._task, advance=1 if self._begun else 0, description=text)
        self._begun = True

    def measured(self, run: dict[str, Any]) -> None:
        self._last[run["contender"], run["tool"], run["connections"]] = run

    def trouble(self, text: str) -> None:
        self.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        screen = Table.grid()
        if self._last:
            table = Table("contender", "tool", "connections", "round", "requests/s", "p99 ms", "CPU µs/request")
            for run in list(self._last.values())[-max(5, self.console.height - 8) :]:
                table.add_row(
                    run["contender"],
                    run["tool"],
                    *(str(run[key]) for key in ("connections", "round")),
                    f"{run['requests_per_second']:,.0f}",
                    f"{run['p99_ms']:.2f}",
                    f"{run['cpu_us']:.1f}",
                )
            screen.add_row(table)
        screen.add_row(self._bar)
        return screen


@click.group()
def main() -> None:
    """What each choice of server, store and library costs."""


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every comparison has."""
    for option in (
        click.option("--publish", "published", is_flag=True, help="Write the figures into docs/benchmarks.md, too."),
        click.option("--output", type=click.Path(path_type=Path), help="Folder for the results."),
        click.option("--seed", type=int, help="Of the order within each round; given with the results."),
        click.option("--rounds", type=click.IntRange(min=1), help="5 by default."),
    ):
        command = option(command)
    return command


@main.command()
@click.option("--quick", is_flag=True, help="About a minute: fewer contenders, short runs, three rounds.")
@click.option(
    "--contender",
    "contenders",
    type=Spelled(),
    multiple=True,
    help=(
        f"{'|'.join(SERVERS)} + redis|unix|memory|postgresql for the service, or {'|'.join(PEERS)} + a server. Words "
        "in brackets are options of the server or settings: 'granian+redis[PYTHONRICING_REQUEST_LOG=off]'. Repeatable."
    ),
)
@click.option("--tool", "tools", type=click.Choice(list(TOOLS)), multiple=True, help="All by default. Repeatable.")
@click.option("--workers", type=Numbers(), help="The first is measured with every tool, the others by one.")
@click.option("--connections", type=Numbers(), help="Likewise, for wrk and Locust; ab always has 10.")
@click.option("--counters", type=Numbers(), default="1", help="Likewise: claims spread over this many, by wrk.")
@click.option(
    "--scenario", type=click.Choice(list(SCENARIOS)), default="admitted", show_default=True, help="What is answered."
)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Of a sale and of the audit.")
@click.option("--seconds", type=click.IntRange(min=1), help="Of each run of wrk and Locust.")
@click.option("--requests", type=click.IntRange(min=10), help="Of each run of ab.")
@_shared
def compare(
    *,
    quick: bool,
    contenders: tuple[Contender, ...],
    tools: tuple[str, ...],
    output: Path | None,
    seed: int | None,
    counters: tuple[int, ...],
    scenario: str,
    limit: int,
    published: bool,
    **given: Any,
) -> None:
    """Measure contenders side by side, and write results.json, report.md and report.html."""
    defaults = (
        Options(
            contenders=tuple(map(Contender.parse, QUICK)),
            workers=tuple(dict.fromkeys((CORES, 1))),
            connections=(32, 4),
            rounds=3,
            seconds=1,
            requests=2000,
            sweep_service_only=True,
            once=("locust",),
            budget=QUICK_BUDGET,
        )
        if quick
        else Options(
            contenders=tuple(map(Contender.parse, SERVICE + OTHERS)),
            workers=tuple(dict.fromkeys((CORES, 1, 2 * CORES))),
            connections=(32, 1, 256),
        )
    )
    options = replace(
        defaults,
        contenders=tuple(dict.fromkeys(contenders)) or defaults.contenders,
        tools=tuple(dict.fromkeys(tools)) or defaults.tools,
        counters=counters,
        scenario=scenario,
        limit=limit,
        **{name: value for name, value in given.items() if value is not None},
    )
    _run(options, seed, output, published, asked_for={*tools, *(contender.name for contender in contenders)})


@main.command()
@_shared
def headline(*, rounds: int | None, seed: int | None, output: Path | None, published: bool) -> None:
    """`ab -n 10000 -c 10` with 16 workers and a limit of 100: synced against unsynced."""
    options = Options(
        contenders=tuple(map(Contender.parse, HEADLINE)),
        workers=(16,),
        connections=(10,),
        tools=("ab",),
        rounds=rounds or 5,
        scenario="sale",
        note="The first PythonRicing reported a mean of 2.659 ms synced and 2.285 ms unsynced, on another machine.",
    )
    _run(options, seed, output, published, asked_for={"ab"})


@main.command("report")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def render(folder: Path) -> None:
    """Write the report of a results.json anew."""
    report.write(Results.from_json((folder / "results.json").read_text()), folder)
    click.echo(folder / "report.html")


@main.command("profile")
@click.option("--contender", type=Spelled(), default="granian+redis", show_default=True)
@click.option("--tool", type=click.Choice(["wrk", "locust"]), default="wrk", show_default=True)
@click.option("--seconds", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--connections", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("results/profile.svg"), show_default=True)
def flame_graph(contender: Contender, tool: str, seconds: int, connections: int, output: Path) -> None:
    """Draw a flame graph of one worker under load."""
    if not TOOLS[tool].available():
        raise click.ClickException(f"{tool} is not installed: it is in {TOOLS[tool].package}")
    try:
        click.echo(profile(contender.with_workers(1), TOOLS[tool], seconds, connections, output))
    except (ProfileError, ContenderError, Unavailable, ToolError) as error:
        raise click.ClickException(str(error)) from None


def _run(options: Options, seed: int | None, output: Path | None, published: bool, asked_for: set[str]) -> None:
    """Compare, write, and end with status 0, 1 when something that was asked for is missing, 130 when interrupted."""
    seed = int(time.time()) if seed is None else seed
    missing = {name: TOOLS[name] for name in options.tools if not TOOLS[name].available()}
    lines = [f"{name} is not installed: it is in {tool.package}" for name, tool in missing.items()]
    options = replace(options, seed=seed, tools=tuple(name for name in options.tools if name not in missing))
    folder = output or Path("results") / time.strftime("%Y%m%d-%H%M%S")
    screen = Screen()
    lab = Lab(options, screen, skipped=lines)
    for line in lines:
        screen.trouble(f"skipped: {line}")
    lab.results.errors += [line for name, line in zip(missing, lines, strict=True) if name in asked_for]
    with screen.live:
        results = lab.run()
    skipped = [line for line in results.skipped if line.partition(": ")[0] in asked_for]
    results.errors += [line for line in skipped if line not in results.errors]
    report.write(results, folder)
    if published:
        _publish(results)
    _print_summary(screen.console, results)
    click.echo(folder / "report.html")
    sys.exit(INTERRUPTED if results.interrupted else 1 if results.errors or not results.runs else 0)


def _publish(results: Results) -> None:
    """Write a comparison into the documentation, unless it is one that nobody should read figures from."""
    if results.errors or results.interrupted or not results.runs:
        raise click.ClickException("not published: the comparison is not complete")
    try:
        command = shlex.join(["python", "-m", "loadtests", *sys.argv[1:]])
        publish(ROOT / "docs" / "benchmarks.md", report.as_page(results, command))
    except PublishError as error:
        raise click.ClickException(str(error)) from None


def _print_summary(console: Console, results: Results) -> None:
    rows = report.summary(results)
    if rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        console.print(table)


if __name__ == "__main__":
    main()
