"""The plots of a report, as SVG that takes its ink from the page and so is legible in light and dark."""

from __future__ import annotations

import html
import io
import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator, ScalarFormatter

from loadtests.statistics import EQUAL
from loadtests.verdicts import TITLES, comparisons

if TYPE_CHECKING:
    from loadtests.measure import Results
    from loadtests.verdicts import Comparison

#: Stands for the page's own text colour until the SVG is written.
INK = "#010203"
#: Outside a page, as in a README: a grey that shows on white and on black.
GREY = "#808890"
#: Mid tones, told apart on white and on black.
COLOURS = ("#2f81f7", "#e0823d", "#3fa45b", "#d1537f", "#8a6fe0", "#1f9e9e", "#b59a1e", "#a0694b", "#7f8c99", "#d84a3a")
KINDS = {"primary": COLOURS[0], "A/A control": COLOURS[8], "exploratory": COLOURS[1]}

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


def draw(results: Results) -> dict[str, str]:
    """Titles and SVG texts of all plots that the results have figures for."""
    drawn = {}
    with mpl.rc_context(STYLE):
        for figure, title in TITLES.items():
            found = [each for each in comparisons(results) if each.figure == figure]
            if found:
                drawn[f"Ratio of {title}"] = as_svg(forest(found, results), _said(title, found))
    return drawn


def _said(title: str, found: list[Comparison]) -> str:
    """The plot in words, for who can't see it."""
    rows = (
        f"{c.name}, {c.place}: {c.ratio.value:.2f} [{c.ratio.low:.2f}, {c.ratio.high:.2f}], {c.verdict}" for c in found
    )
    return f"Ratio of {title}, a row for each comparison. " + "; ".join(rows) + "."


def as_svg(canvas: Canvas, said: str) -> str:
    text = io.StringIO()
    canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(said)}" ', 1)


def for_readme(svg: str) -> str:
    """A file of its own: an image has no text colour to take from the page."""
    return svg.replace("currentColor", GREY)


def forest(found: list[Comparison], results: Results) -> Canvas:
    """A row for each comparison: its slices as dots, the estimate with its interval, and the band of what is equal."""
    canvas = Canvas(figsize=(7.2, 0.55 * len(found) + 1.2), layout="constrained")
    axis = canvas.subplots()
    axis.axvspan(1 / EQUAL, EQUAL, color=INK, alpha=0.08, linewidth=0)
    axis.axvline(1, color=INK, linewidth=0.8)
    low, high = 0.9, 1.1
    for row, each in enumerate(reversed(found)):
        sides: dict[str, dict[int, float]] = {"ours": {}, "theirs": {}}
        for run in results.runs:
            if run["pair"] == each.number:
                sides[run["side"]][run["slice"]] = run[each.figure]
        both = sorted(sides["ours"].keys() & sides["theirs"].keys())
        dots = [sides["ours"][number] / sides["theirs"][number] for number in both if sides["theirs"][number]]
        colour = KINDS[each.kind]
        axis.plot(dots, [row - 0.18] * len(dots), "o", color=colour, alpha=0.25, markersize=3, markeredgewidth=0)
        axis.plot([each.ratio.low, each.ratio.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        axis.plot(each.ratio.value, row, "D", color=colour, markersize=6)
        low, high = min(low, each.ratio.low, *dots), max(high, each.ratio.high, *dots)
    axis.set_yticks(
        range(len(found)), [f"{c.pair['theirs'].replace('+', ' + ')}\n{c.place}" for c in reversed(found)], fontsize=8
    )
    axis.set_xscale("log")
    axis.set_xlim(low / 1.03, high * 1.03)
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10) if low <= t <= high]
    axis.set_xticks([t for t in ticks if high / low < 2.5 or t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10)])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(f"{found[0].pair['ours']}, divided by the row's")
    assert math.isfinite(low)
    return canvas
