"""The chooser's table: what is better where, first; then every figure of both servers, with their ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from loadtests.choose import FIGURES, SERVERS, compared, sides, typical
from loadtests.report import Section, interval, machine_section, troubles
from loadtests.statistics import holm
from loadtests.verdicts import CONTROL_DIFFERS

if TYPE_CHECKING:
    from loadtests.measure import Results
    from loadtests.statistics import Ratio

METHOD = """\
In every round all questions, in an order that is drawn, the two servers next to each other, in an order that is drawn \
too. Where a rate is named, requests come at Poisson moments, latencies begin when a request was meant to start, and \
every answer is checked; its latencies are left out as void where the generator itself was late. Elsewhere the load is \
closed, which measures capacity. Beside each median stand the least and the greatest slice; the ratio is the \
Hodges-Lehmann estimate with its exact 95 % interval, and differences are said after Holm's adjustment over the whole \
table. After every slice on the service the counter is held against the answers.
Slow readers ask for a megabyte of answers each and read a kilobyte of it. Beside the hogs the generator runs at \
real-time priority, where it may, so that it is the server that has to wait. Ready is a server whose every worker has \
reached the store. A restart is SIGHUP to the server; what fails in it are requests without an answer or with a 5xx."""


class Row(NamedTuple):
    """A figure of a question; `p` is adjusted."""

    question: str
    figure: str
    ratio: Ratio | None
    p: float

    @property
    def verdict(self) -> str:
        return "" if self.ratio is None else self.ratio.judged(self.p)

    @property
    def control(self) -> bool:
        return self.question.startswith("A/A")


def rows(results: Results) -> list[Row]:
    """Every figure of the table; the control is judged by itself."""
    found = [
        Row(question, figure, ratio, ratio.p if ratio else 1.0)
        for question, figures in results.options["figures"].items()
        for figure in figures
        for ratio in [compared(results, question, figure)]
    ]
    explored = [row for row in found if row.ratio and not row.control]
    adjusted = dict(zip(explored, holm([row.p for row in explored]), strict=True))
    return [row._replace(p=adjusted.get(row, row.p)) for row in found]


def sections(results: Results) -> list[Section]:
    parts = [_verdict(results)]
    if results.errors or results.skipped or results.interrupted:
        parts.append(troubles(results))
    return [*parts, _table(results), machine_section(results), Section("Method", METHOD.split("\n"))]


def _verdict(results: Results) -> Section:
    found = rows(results)
    said: dict[str, list[str]] = {"granian": [], "uvicorn": [], "equal": [], "undecided": []}
    for row in found:
        if row.ratio is None or row.control:
            continue
        name = f"{row.question} ({FIGURES[row.figure][0]})"
        if row.verdict == "differs":
            more_is_better = row.figure == "requests_per_second"
            said["granian" if (row.ratio.value > 1) == more_is_better else "uvicorn"].append(
                f"{name} {row.ratio.value:.2f}"
            )
        else:
            said["equal" if row.verdict.startswith("equal") else "undecided"].append(name)
    items = [
        f"{title}: {'; '.join(said[key]) or 'nothing'}"
        for key, title in (
            ("granian", "**Granian is better** in"),
            ("uvicorn", "**uvicorn is better** in"),
            ("equal", "Equal within 5 %"),
            ("undecided", "Undecided, or too few slices"),
        )
    ]
    if any(row.control and row.verdict == "differs" for row in found):
        items.insert(0, CONTROL_DIFFERS)
    void = sum(bool(run.get("void")) for run in results.runs)
    if void:
        items.append(f"The latencies of {void} of {len(results.runs)} slices are void: the generator was late")
    return Section("Load lab: what a chooser asks", items=items, kind="verdict")


def _table(results: Results) -> Section:
    lines = []
    for row in rows(results):
        title, digits = FIGURES[row.figure]
        cells = [typical(side, digits) for side in sides(results, row.question, row.figure)]
        ratio = "-" if row.ratio is None else interval(row.ratio, 2)
        verdict = f"{row.verdict} (A/A control)" if row.control else row.verdict
        lines.append([row.question, title, *cells, ratio, verdict])
    header = ["", "figure", *SERVERS, f"{SERVERS[0]} / {SERVERS[1]} [95 %]", "verdict"]
    return Section("Question by question", header=header, rows=lines)
