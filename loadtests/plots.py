"""The plots of a report, as SVG that takes its ink from the page and so is legible in light and dark."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import ScalarFormatter

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.analysis import Analysis

#: Stands for the page's own text colour until the SVG is written.
INK = "#010203"
#: Outside a page, as in a README: a grey that shows on white and on black.
GREY = "#808890"
#: Mid tones, told apart on white and on black.
COLOURS = ("#2f81f7", "#e0823d", "#3fa45b", "#d1537f", "#8a6fe0", "#1f9e9e", "#b59a1e", "#a0694b", "#7f8c99", "#d84a3a")

STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 10,
    "font.family": "sans-serif",
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "loadtests",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(analysis: Analysis) -> dict[str, str]:
    """Titles and SVG texts of all plots that the results have figures for."""
    plots: dict[str, Callable[[Analysis], Canvas | None]] = {
        "Throughput": throughput,
        "Latency distribution": latency,
        "Server CPU a request": cpu,
        "Throughput against workers": lambda a: sweep(a, "workers", "requests_per_second", "requests/s"),
        "Cost against workers": lambda a: sweep(a, "workers", "cpu_us", "server CPU µs a request"),
        "Throughput against connections": lambda a: sweep(a, "connections", "requests_per_second", "requests/s"),
        "Cost against connections": lambda a: sweep(a, "connections", "cpu_us", "server CPU µs a request"),
        "Cost against counters": lambda a: sweep(a, "counters", "cpu_us", "server CPU µs a request"),
    }
    drawn = {}
    with mpl.rc_context(STYLE):
        for title, plot in plots.items():
            if (canvas := plot(analysis)) is not None:
                drawn[title] = as_svg(canvas)
    return drawn


def as_svg(canvas: Canvas) -> str:
    text = io.StringIO()
    canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def for_readme(svg: str) -> str:
    """A file of its own: an image has no text colour to take from the page."""
    return svg.replace("currentColor", GREY)


def _colours(analysis: Analysis) -> dict[str, str]:
    """One colour a contender, the same in all plots."""
    names = dict.fromkeys(about["name"] for about in analysis.contenders.values())
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def throughput(analysis: Analysis) -> Canvas | None:
    return _bars(analysis, "requests_per_second", "requests/s, median and 95 % interval")


def cpu(analysis: Analysis) -> Canvas | None:
    return _bars(analysis, "cpu_us", "server CPU µs a request, median and 95 % interval")


def _bars(analysis: Analysis, figure: str, label: str) -> Canvas | None:
    """A panel for each tool, a bar for each contender."""
    tools = analysis.tools
    if not tools:
        return None
    rows = max(len(analysis.base_cases(tool)) for tool in tools)
    canvas = Canvas(figsize=(9, (0.34 * rows + 1.0) * len(tools)), layout="constrained")
    axes = canvas.subplots(len(tools), 1, squeeze=False)[:, 0]
    colours = _colours(analysis)
    for axis, tool in zip(axes, tools, strict=True):
        cases = [case for case in analysis.base_cases(tool) if analysis.estimate(case, figure)][::-1]
        for place, case in enumerate(cases):
            value = analysis.estimate(case, figure)
            assert value is not None
            spread = [[value.median - value.low], [value.high - value.median]]
            colour = colours[analysis.contenders[case.contender]["name"]]
            axis.barh(place, value.median, xerr=spread, color=colour, height=0.7, ecolor=INK, capsize=3)
        axis.set_yticks(range(len(cases)), [case.contender for case in cases])
        axis.set_title(f"{tool}, {analysis.base_connections(tool)} connections", loc="left", fontsize=10)
        axis.grid(visible=False, axis="y")
    axes[-1].set_xlabel(label)
    return canvas


def latency(analysis: Analysis) -> Canvas | None:
    """Milliseconds against the share of requests that took longer, both logarithmic."""
    if (tool := analysis.best_tool) is None:
        return None
    canvas, axis = _single()
    colours = _colours(analysis)
    for case in analysis.base_cases(tool):
        points = [(100 / (100 - percent), ms) for percent, ms in analysis.distribution(case) if 1 <= percent < 100]
        colour = colours[analysis.contenders[case.contender]["name"]]
        axis.plot([x for x, _ in points], [y for _, y in points], color=colour, label=case.contender)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks([1, 2, 10, 100, 1000, 10000], ["all", "p50", "p90", "p99", "p99.9", "p99.99"])
    axis.minorticks_off()
    axis.set_xlim(left=1)
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.set_ylabel("ms")
    axis.set_title(f"{tool}, {analysis.base_connections(tool)} connections", loc="left", fontsize=10)
    _legend(canvas, axis)
    return canvas


def sweep(analysis: Analysis, vary: str, figure: str, label: str) -> Canvas | None:
    lines = analysis.sweep(vary, figure)
    if not lines:
        return None
    canvas, axis = _single()
    colours = _colours(analysis)
    for name, points in lines.items():
        places = [place for place, _ in points]
        axis.plot(places, [value.median for _, value in points], marker="o", color=colours[name], label=name)
        axis.fill_between(
            places, [v.low for _, v in points], [v.high for _, v in points], color=colours[name], alpha=0.2, linewidth=0
        )
    places = sorted({place for points in lines.values() for place, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel(vary)
    axis.set_ylabel(label)
    _legend(canvas, axis)
    return canvas


def _single() -> tuple[Canvas, Any]:
    canvas = Canvas(figsize=(9, 4.5), layout="constrained")
    return canvas, canvas.subplots()


def _legend(canvas: Canvas, axis: Any) -> None:
    canvas.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
