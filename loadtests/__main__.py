"""`python -m loadtests compare`, `choose`, `headline` and `report`."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from loadtests import report, self_test
from loadtests.choose import SERVERS as CHOICE
from loadtests.choose import Chooser
from loadtests.contenders import PEERS, SERVERS, Contender
from loadtests.curves import QUICK_SHARES, SHARES, Curves
from loadtests.design import PRIMARIES, SCENARIOS, Options
from loadtests.measure import Lab, Results
from loadtests.placement import CPUS, PLACEMENTS
from loadtests.profile import ProfileError, profile
from loadtests.publish import PublishError, publish
from loadtests.revisions import ROOT
from loadtests.rig.processes import Unavailable
from loadtests.running import ContenderError
from loadtests.screen import Screen
from loadtests.statistics import FEWEST
from loadtests.tools import TOOLS, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

CORES = len(CPUS)

#: The first against each of the others, the first three of these primary.
CONTENDERS = [
    *("granian+redis", "uvicorn+redis", "asgi-batch+granian", "fastapi+uvicorn"),
    *("granian+memory", "granian+postgresql", "granian+redis[PYTHONRICING_REQUEST_LOG=off]", "constant+granian"),
    *("asgi-incr+granian", "limits+uvicorn", "hypercorn+redis", "gunicorn+redis", "gunicorn-asgi+redis"),
]
QUICK = ["granian+redis", "uvicorn+redis", "asgi-batch+granian", "fastapi+uvicorn"]
HEADLINE = ["granian+redis", "granian+memory", "uvicorn+redis", "read-then-write+uvicorn"]
OPEN = ["granian+redis", "uvicorn+redis", "fastapi+uvicorn"]
EQUALS = ["granian+redis"]

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


@click.group()
def main() -> None:
    """What each choice of server, store and library costs."""


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every comparison has."""
    for option in (
        click.option("--publish", "published", is_flag=True, help="Write the figures into docs/benchmarks.md, too."),
        click.option("--output", type=click.Path(path_type=Path), help="Folder for the results."),
        click.option("--seed", type=int, help="Of the order; given with the results."),
        click.option("--slices", type=click.IntRange(min=1), help="Pairs of slices of primary comparisons; 40."),
        click.option("--minutes", type=click.FloatRange(min=0), help="Begin no slice after so many minutes."),
    ):
        command = option(command)
    return command


@main.command()
@click.option("--quick", is_flag=True, help="Within two minutes: fewer contenders and slices.")
@click.option("--open", "curved", is_flag=True, help="Latency and CPU over offered load, in the open model.")
@click.option(
    "--self-test",
    "tested",
    is_flag=True,
    help="Ten minutes of equals: how often they are said to differ, and the smallest difference that is found.",
)
@click.option(
    "--contender",
    "contenders",
    type=Spelled(),
    multiple=True,
    help=(
        f"{'|'.join(SERVERS)} + redis|unix|memory|postgresql for the service, or {'|'.join(PEERS)} + a server. Words "
        "in brackets are options of the server, settings, or tls: 'granian+redis[PYTHONRICING_LEASE=0]'. A revision "
        "of the service: granian+redis@v0.1.0. Repeatable: the first is compared with each of the others, and "
        "the throughput of the first three pairs is primary."
    ),
)
@click.option("--against", type=Spelled(), multiple=True, help="Compare each contender with this, instead. Repeatable.")
@click.option(
    "--target",
    "targets",
    type=Spelled(),
    multiple=True,
    help=(
        "URL of the service on another machine, as a contender. It needs PYTHONRICING_ADMIN_TOKEN, and its counters "
        "default, audit-… and lab-… begin anew. Repeatable."
    ),
)
@click.option("--tool", type=click.Choice(list(TOOLS)), default="wrk", show_default=True)
@click.option("--workers", type=Numbers(), help="The first is the base; the others are explored.")
@click.option("--connections", type=Numbers(), default="32", show_default=True, help="Likewise; ab always has 10.")
@click.option("--counters", type=Numbers(), default="1", help="Likewise: claims spread over this many, by wrk.")
@click.option(
    "--placement",
    "placements",
    type=click.Choice(list(PLACEMENTS)),
    multiple=True,
    help="Which cores generator, server and store have. All by default, the first is the base. Repeatable.",
)
@click.option(
    "--scenario", type=click.Choice(list(SCENARIOS)), default="admitted", show_default=True, help="What is answered."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Of a sale, and of peers' audits."
)
@click.option("--explored", type=click.IntRange(min=1), help="Pairs of slices of exploratory comparisons; 12.")
@click.option("--width", type=click.FloatRange(min=0.001), help="Go on until the primary intervals are so narrow.")
@click.option("--seconds", type=click.IntRange(min=1), help="Of each slice of wrk; 1.")
@click.option("--requests", type=click.IntRange(min=10), help="Of each slice of ab; 2,000.")
@_shared
def compare(
    *,
    quick: bool,
    tested: bool,
    curved: bool,
    contenders: tuple[Contender, ...],
    targets: tuple[Contender, ...],
    output: Path | None,
    seed: int | None,
    placements: tuple[str, ...],
    published: bool,
    **given: Any,
) -> None:
    """Measure contenders side by side, and write results.json, report.md and report.html."""
    names = EQUALS if tested else OPEN if curved else QUICK if quick else CONTENDERS
    contenders = (*contenders, *targets)
    options = Options(
        contenders=tuple(dict.fromkeys(contenders)) or tuple(map(Contender.parse, names)),
        varied=len(contenders) * max(1, len(given["against"])) or PRIMARIES,
        workers=(CORES,),
        connections=(32,),
        placements=placements or (("free",) if quick or tested or curved else tuple(PLACEMENTS)),
        tool=given.pop("tool"),
    )
    if quick:
        options = replace(options, slices=8, explored=FEWEST, minutes=1.5)
    if tested:
        options = replace(options, slices=10_000, minutes=10)
    if curved:
        options = replace(
            options, slices=FEWEST if quick else 12, seconds=1 if quick else 2, minutes=1.5 if quick else None
        )
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    asked = {options.tool, *(contender.name for contender in contenders)}
    _run(
        options,
        seed,
        output,
        published,
        asked_for=asked,
        tested=tested,
        lab=partial(Curves, shares=QUICK_SHARES if quick else SHARES) if curved else Lab,
    )


@main.command()
@_shared
def headline(*, seed: int | None, output: Path | None, published: bool, **given: Any) -> None:
    """`ab -n 10000 -c 10` with 16 workers and a limit of 100: synced against unsynced."""
    options = Options(
        contenders=tuple(map(Contender.parse, HEADLINE)),
        workers=(16,),
        connections=(10,),
        tool="ab",
        requests=10_000,
        slices=12,
        scenario="sale",
        note="The first PythonRicing reported a mean of 2.659 ms synced and 2.285 ms unsynced, on another machine.",
    )
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    _run(options, seed, output, published, asked_for={"ab"})


@main.command()
@click.option("--quick", is_flag=True, help="Within two minutes: each question once, memory after ten seconds.")
@click.option("--workers", type=click.IntRange(min=1), default=CORES, show_default=True)
@_shared
def choose(
    *,
    quick: bool,
    workers: int,
    seed: int | None,
    output: Path | None,
    published: bool,
    slices: int | None,
    **given: Any,
) -> None:
    """Granian and uvicorn where a choice is made: TLS, HTTP/2, slow readers, restarts, memory …, in one table."""
    contenders = tuple(Contender.parse(f"{server}+redis") for server in CHOICE)
    options = Options(contenders, workers=(workers,), connections=(32,), **given)
    options = replace(options, slices=slices or (1 if quick else 10), seconds=1 if quick else 2)
    lab = partial(Chooser, memory=10.0 if quick else 600.0)
    _run(options, seed, output, published, asked_for=set(), lab=lab)


@main.command("report")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--publish", "published", is_flag=True, help="Write the figures into docs/benchmarks.md, too.")
def render(folder: Path, *, published: bool) -> None:
    """Write the report of a results.json anew."""
    results = Results.from_json((folder / "results.json").read_text())
    report.write(results, folder)
    if published:
        _publish(results, folder)
    click.echo(folder / "report.html")


@main.command("profile")
@click.option("--contender", type=Spelled(), default="granian+redis", show_default=True)
@click.option("--tool", type=click.Choice(list(TOOLS)), default="wrk", show_default=True)
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


def _run(
    options: Options,
    seed: int | None,
    output: Path | None,
    published: bool,
    asked_for: set[str],
    *,
    tested: bool = False,
    lab: Callable[[Options, Screen], Lab] = Lab,
) -> None:
    """Compare, write, and end with status 0, 1 when something failed or is missing, 130 when interrupted."""
    options = replace(options, seed=int(time.time()) if seed is None else seed)
    folder = output or Path("results") / time.strftime("%Y%m%d-%H%M%S")
    screen = Screen()
    tool = TOOLS[options.tool]
    if not tool.available():
        raise click.ClickException(f"{options.tool} is not installed: it is in {tool.package}")
    measuring = lab(options, screen)
    measuring.results.options["command"] = shlex.join(["python", "-m", "loadtests", *sys.argv[1:]])
    with screen.live:
        results = measuring.run()
    skipped = [line for line in results.skipped if line.partition(": ")[0] in asked_for]
    results.errors += [line for line in skipped if line not in results.errors]
    report.write(results, folder)
    if published:
        _publish(results, folder)
    if lab is Lab:
        _print_summary(screen.console, results)
    if tested:
        click.echo(self_test.as_text(results))
    click.echo(folder / "report.html")
    sys.exit(INTERRUPTED if results.interrupted else 1 if results.errors or not results.runs else 0)


def _publish(results: Results, folder: Path) -> None:
    """Write a comparison and its plot into the documentation, unless nobody should read figures from it."""
    if results.errors or results.interrupted or not results.runs:
        raise click.ClickException("not published: the comparison is not complete")
    docs = ROOT / "docs"
    page, name = place(results)
    try:
        publish(docs / page, report.as_page(results), name)
    except PublishError as error:
        raise click.ClickException(str(error)) from None
    for plot in folder.glob("*.svg") if name in ("open", "capacity") else ():
        shutil.copy(plot, docs / plot.name)


def place(results: Results) -> tuple[str, str]:
    """The page that a comparison's figures are for, and the name of their markers there."""
    if kind := next((kind for kind in ("open", "choose") if results.options.get(kind)), None):
        return "benchmarks.md", kind
    if results.options["contenders"][0]["app"] == "library":
        return "library.md", "library"
    return "benchmarks.md", "headline" if results.options["scenario"] == "sale" else "capacity"


def _print_summary(console: Console, results: Results) -> None:
    rows = report.summary(results)
    if rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        console.print(table)


if __name__ == "__main__":
    main()
