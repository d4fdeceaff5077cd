"""What curves say: half the knee first, then every rate; latency over offered load, and over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator, ScalarFormatter

from loadtests import curves
from loadtests.design import copy_of
from loadtests.plots import COLOURS, INK, STYLE, as_svg
from loadtests.report import Section, interval, machine_section, troubles
from loadtests.statistics import holm

if TYPE_CHECKING:
    from loadtests.measure import Results

METHOD = """\
Open model: requests come at Poisson moments, whatever became of those before, and a latency begins when a request was \
meant to start. What finds no free connection waits; what has no answer within 2 s is counted with 2 s, never dropped. \
The same rates are offered to all, shares of the capacity that the first contender had under a closed loop, all \
contenders next to each other at every rate. Percentiles are those of the merged HDR histograms of all slices, in \
brackets the least and the greatest of the slices. Every answer is checked. A slice is void, and left out, where the \
generator's own lateness (p99) was over a tenth of the p99 that it measured."""


def sections(results: Results) -> list[Section]:
    parts = [_verdict(results)]
    if results.errors or results.skipped or results.interrupted:
        parts.append(troubles(results))
    parts += [_rates(results), _ratios(results), machine_section(results)]
    return [*parts, Section("Method", [METHOD])]


def _verdict(results: Results) -> Section:
    items = []
    for key in results.contenders:
        found = curves.offered(results, key)
        knee = curves.knee(results, key)
        if knee is None:
            items.append(f"{key}: its p99 is over {curves.KNEE:g} ms at every rate that was offered")
            continue
        half = min(found, key=lambda rate: abs(rate - knee / 2))
        latencies = curves.merged(found[half])
        cpu = _cpu(found[half])
        items.append(
            f"{key}: knee at {knee:,.0f} requests/s or above; near half of it ({half:,.0f}) a user waits "
            f"{latencies.percentile(50):.2f} ms (p50), **{latencies.percentile(99):.1f} ms (p99)**, "
            f"{latencies.percentile(99.9):.1f} ms (p99.9), at {cpu} µs of CPU a request"
        )
    void = sum(run["void"] for run in results.runs)
    if void:
        items.append(f"{void} of {len(results.runs)} slices are void: the generator was late")
    audits = {key: audit["verdict"] for key, audit in results.audits.items()}
    items.append(f"Exact: {', '.join(key for key, verdict in audits.items() if verdict == 'exact') or 'none'}")
    return Section("Load lab: latency at equal load", items=items, kind="verdict")


def _cpu(runs: list[dict[str, Any]]) -> str:
    """Microseconds a request over all of these slices; of a service elsewhere nobody knows."""
    spent = sum((run["cpu_us"] or 0.0) * run["answered"] for run in runs)
    return f"{spent / max(1, sum(run['answered'] for run in runs)):.0f}" if spent else "-"


def _rates(results: Results) -> Section:
    rows = []
    for key in results.contenders:
        for rate, runs in curves.offered(results, key).items():
            latencies = curves.merged(runs)
            slices = sorted(run["p99_ms"] for run in runs)
            answered = sum(run["answered"] for run in runs) / sum(run["seconds"] for run in runs)
            cells = [f"{latencies.percentile(percent):.2f}" for percent in curves.PERCENTS]
            cells[2] += f" [{slices[0]:.1f}, {slices[-1]:.1f}]"
            censored = sum(run["timed_out"] + run["lost"] for run in runs)
            late = max(run["late_p99_ms"] for run in runs)
            cells += [_cpu(runs), f"{sum(run['waited'] for run in runs):,}", f"{censored:,}", f"{late:.2f}"]
            rows.append([key, f"{rate:,.0f}", f"{answered:,.0f}", *cells])
    header = [
        *("contender", "offered/s", "answered/s", *(f"p{percent:g} ms" for percent in curves.PERCENTS)),
        *("server CPU µs/request", "waited", "censored", "own lateness, p99 ms"),
    ]
    capacity = results.options.get("capacity", 0.0)
    return Section("Over offered load", [f"Capacity of the first: {capacity:,.0f}/s"], header=header, rows=rows)


def _ratios(results: Results) -> Section:
    first, *others = results.contenders
    found = {
        (other, rate, figure): curves.at_equal_load(results, first, other, rate, figure)
        for other in others
        for rate in curves.offered(results, first)
        for figure in ("p99_ms", "cpu_us")
    }
    explored = [key for key, ratio in found.items() if ratio is not None and key[0] != copy_of(first)]
    adjusted = dict(zip(explored, holm([ratio.p for key in explored if (ratio := found[key])]), strict=True))
    cells: dict[tuple[str, float], list[str]] = {}
    for key, ratio in found.items():
        said = "-" if ratio is None else f"{interval(ratio, 2)} {ratio.judged(adjusted.get(key, ratio.p))}"
        cells.setdefault(key[:2], []).append(said)
    rows = [
        [f"{first} / {'a copy of it' if other == copy_of(first) else other}", f"{rate:,.0f}", *figures]
        for (other, rate), figures in cells.items()
    ]
    header = ["ours / theirs", "offered/s", "p99 of a slice", "server CPU a request"]
    text = [
        "Slice by slice at the same rate; all of it exploratory, after Holm's adjustment. The copy is the A/A control."
    ]
    return Section("Ratios at equal load", text, header=header, rows=rows)


def draw(results: Results) -> dict[str, str]:
    with rc_context(STYLE):
        return {"p99 over offered load": as_svg(_over_load(results), _said(results)), **_heat(results)}


def _said(results: Results) -> str:
    rows = [
        f"{key} at {rate:.0f}/s {curves.merged(runs).percentile(99):.1f} ms"
        for key in results.contenders
        for rate, runs in curves.offered(results, key).items()
    ]
    return "p99 over offered load: " + "; ".join(rows)


def _over_load(results: Results) -> Canvas:
    canvas = Canvas(figsize=(7.2, 4.4), layout="constrained")
    axis = canvas.subplots()
    for number, key in enumerate(results.contenders):
        found = curves.offered(results, key)
        colour, rates = COLOURS[number % len(COLOURS)], list(found)
        axis.plot(rates, [curves.merged(r).percentile(99) for r in found.values()], "o-", color=colour, label=key)
        bands = [sorted(run["p99_ms"] for run in runs) for runs in found.values()]
        axis.fill_between(rates, [b[0] for b in bands], [b[-1] for b in bands], color=colour, alpha=0.15, linewidth=0)
    axis.axhline(curves.KNEE, linewidth=0.8, linestyle="--", color=INK)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("offered requests/s")
    axis.set_ylabel("p99 in ms, band: its slices")
    axis.legend(fontsize=8)
    return canvas


def _heat(results: Results) -> dict[str, str]:
    """A row for each rate of the first contender, a column for each slice in the order of time: the p99 as a colour."""
    key = next(iter(results.contenders))
    found = curves.offered(results, key)
    width = max((run["slice"] for runs in found.values() for run in runs), default=0) + 1
    grid: list[list[float]] = [[float("nan")] * width for _ in found]
    for row, runs in enumerate(found.values()):
        for run in runs:
            grid[row][run["slice"]] = run["p99_ms"]
    if not found:
        return {}
    canvas = Canvas(figsize=(7.2, 0.4 * len(found) + 1.4), layout="constrained")
    axis: Any = canvas.subplots()
    image = axis.imshow(grid, aspect="auto", norm="log", cmap="viridis")
    axis.set_yticks(range(len(found)), [f"{rate:,.0f}/s" for rate in found])
    axis.set_xlabel("slice, in the order of time")
    axis.grid(visible=False)
    canvas.colorbar(image, label="p99 ms")
    title = f"p99 over time, {key}"
    rows = [
        f"at {rate:.0f}/s " + ", ".join(f"{run['p99_ms']:.1f}" for run in sorted(runs, key=lambda run: run["slice"]))
        for rate, runs in found.items()
    ]
    return {title: as_svg(canvas, f"{title}, in ms: " + "; ".join(rows))}
