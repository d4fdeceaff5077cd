"""The report: the same tables as Markdown and as one HTML page with its plots inside."""

from __future__ import annotations

import html
import re
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadtests import plots
from loadtests.analysis import COMPARED, FIGURES, GRANIAN_UVICORN, Analysis
from loadtests.measure import SCENARIOS, Results
from loadtests.tools import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.measure import Case
    from loadtests.statistics import Estimate

CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2024; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
p, li { max-width: 60rem; }
figure { margin: 2rem 0; }
svg { max-width: 100%; height: auto; }
code { font-size: .92em; overflow-wrap: anywhere; }
.trouble { border-left: 4px solid #d84a3a; padding-left: 1rem; }
@media (prefers-color-scheme: dark) { body { color: #e3e6e9; background: #14171a; } }
"""

METHOD = """\
All contenders stay up; in each round every one of them is measured once with each tool, in an order that is drawn \
anew for each round, after a warm-up that is not counted. A figure is the median of its rounds, in brackets the 95 % \
interval of 4,000 bootstrap resamples of the rounds (with fewer than six rounds that is in effect their range). \
A ratio is taken round by round, ours over theirs, and then the median; *no difference* means that its interval \
contains 1.
Server CPU is user and system time of the server's whole process tree, from the processes' CPU clocks; the store's is \
given apart. It holds even where the load generator limits the throughput: that is said where the generator used 90 % \
of the cores that it can use, and those requests/s and latencies then describe the generator as much as the server.
Generator, servers and stores share this machine's cores. What each server logs goes through a pipe to a reader that \
throws it away, as a container's runtime reads it. Each contender on a store has one of its own, with its append-only \
file synced every second.
ab and wrk do not tell a refusal from an error by its status: failures are lost connections and timeouts, and answers \
of the wrong class for the scenario. The audit and Locust check every answer."""


#: Cores used by other programs from which on the report says so.
DISTURBED = 0.25


@dataclass
class Section:
    """A heading, paragraphs, list items and a table, each of which may be missing."""

    title: str
    text: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    kind: str = ""


def write(results: Results, folder: Path) -> None:
    """results.json, report.md, report.html and the plot for a README, throughput.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.to_json())
    analysis = Analysis(results)
    parts = sections(analysis)
    drawn = plots.draw(analysis)
    (folder / "report.md").write_text(as_markdown(parts))
    (folder / "report.html").write_text(as_html(parts, drawn))
    if "Throughput" in drawn:
        (folder / "throughput.svg").write_text(plots.for_readme(drawn["Throughput"]))


def sections(analysis: Analysis) -> list[Section]:
    results = analysis.results
    parts = [_head(results)]
    if results.errors or results.skipped or results.interrupted:
        parts.append(_troubles(results))
    if results.audits:
        parts.append(_audits(results))
    parts += [_figures(analysis, tool) for tool in analysis.tools]
    if analysis.ratios():
        parts += [_ratios(analysis), _losses(analysis)]
    parts += [part for vary in ("workers", "connections", "counters") if (part := _sweep(analysis, vary))]
    parts.append(_method(analysis))
    return parts


def as_page(results: Results, command: str) -> str:
    """The machine, the audits, the figures and their ratios in Markdown, for a page that has headings of its own."""
    analysis = Analysis(results)
    parts = [_head(results), _audits(results), *(_figures(analysis, tool) for tool in analysis.tools)]
    parts += [_ratios(analysis), _losses(analysis)] if analysis.ratios() else []
    parts[0].title = f"`{command}`"
    return re.sub("^#+", "###", as_markdown(parts), flags=re.MULTILINE)


def _head(results: Results) -> Section:
    machine, options = results.machine, results.options
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    stores = sorted({about["store_version"] for about in results.contenders.values()} - {""})
    sold = f", limit {options['limit']}" if options["scenario"] == "sale" else ""
    items = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}",
        f"Python: {machine['python']}",
        f"Versions: {versions}",
        f"Stores: {', '.join(stores) or 'none'}",
        f"Revision: {machine['revision']}",
        f"Begun: {results.started}, took {results.seconds:.0f} s, load average before {machine['load_average'][0]}",
        f"Scenario: {options['scenario']} ({SCENARIOS[options['scenario']]}{sold})",
        f"Rounds: {options['rounds']}, seed {options['seed']}; wrk and Locust {options['seconds']} s a run",
    ]
    if machine["environment"]:
        settings = " ".join(f"{name}={value}" for name, value in machine["environment"].items())
        items.append(f"Environment: {settings}")
    others = statistics.median([run["other_cores"] for run in results.runs] or [0.0])
    if others > DISTURBED:
        items.append(f"**Not a quiet machine**: other programs used {others:.2f} cores in the median run")
    return Section("Load lab", [options["note"]] if options.get("note") else [], items=items)


def _troubles(results: Results) -> Section:
    items = ["Interrupted: what was measured until then is below."] if results.interrupted else []
    items += [f"Failed: {line}" for line in results.errors]
    items += [f"Skipped: {line}" for line in results.skipped]
    return Section("What is missing", items=items, kind="trouble")


def _audits(results: Results) -> Section:
    columns = ("admitted", "distinct", "limit", "refused", "failures", "reading", "verdict")
    rows = [
        [key, *("-" if found[name] is None else str(found[name]) for name in columns)]
        for key, found in results.audits.items()
    ]
    return Section(
        "Exactness",
        ["32 clients at once claim 40 times the limit from a counter at 0, and note every number they are given."],
        header=[
            "contender",
            "admitted",
            "distinct numbers",
            "limit",
            "refused",
            "failures",
            "counter reads",
            "verdict",
        ],
        rows=rows,
    )


def _figures(analysis: Analysis, tool: str) -> Section:
    cases = analysis.base_cases(tool)
    shown = [
        figure
        for figure in FIGURES.values()
        if any(run[figure.key] is not None for case in cases for run in analysis.cases[case])
    ]
    sale = analysis.results.options["scenario"] == "sale"
    rows = []
    for case in cases:
        row = [case.contender]
        for figure in shown:
            value = analysis.estimate(case, figure.key)
            interval = figure.key in ("requests_per_second", "mean_ms", "p99_ms", "cpu_us")
            row.append(_interval(value, figure.digits) if interval else _number(value, figure.digits))
        if sale:
            row.append(_number(analysis.estimate(case, "admitted"), 0))
        rows.append([*row, _generator(analysis, case)])
    header = ["contender", *(figure.title for figure in shown), *(["admitted"] if sale else []), "load generator"]
    command = analysis.cases[cases[0]][0]["command"]
    return Section(f"Figures: {tool}", [f"{TOOLS[tool].explains}: `{command}`"], header=header, rows=rows)


def _generator(analysis: Analysis, case: Case) -> str:
    """How much CPU the generator used of what it can use, and what else was busy."""
    runs = analysis.cases[case]
    cores = sum(run["generator_cores"] for run in runs) / len(runs)
    others = sum(run["other_cores"] for run in runs) / len(runs)
    busy = sum(run["machine_cores"] for run in runs) / len(runs) / analysis.results.machine["cores"]
    words = [f"{cores:.2f} of {runs[0]['generator_limit']:.0f} cores"]
    if analysis.saturated(case):
        words.append("**at its limit**")
    words.append(f"machine {busy:.0%} busy")
    if others > DISTURBED:
        words.append(f"other programs {others:.2f} cores")
    return ", ".join(words)


def _ratios(analysis: Analysis) -> Section:
    """A row for each pair and tool."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for ratio in analysis.ratios():
        pair = (ratio.question, ratio.ours.contender, ratio.theirs.contender, _tool(ratio.ours))
        rows.setdefault(pair, {})[ratio.figure.key] = f"{_interval(ratio.value, 2)} {ratio.words}"
    return Section(
        "Ratios, paired by round",
        ["Ours over theirs. *better* and *worse* are said of ours, where the interval does not contain 1."],
        header=["question", "ours", "theirs", "tool", *(FIGURES[key].title for key in COMPARED)],
        rows=[[*pair, *(cells.get(key, "-") for key in COMPARED)] for pair, cells in rows.items()],
    )


def _losses(analysis: Analysis) -> Section:
    """Said outright, so that nobody has to look for it."""
    losses = [
        f"{ratio.figure.title}, {ratio.ours.contender} against {ratio.theirs.contender}, {_tool(ratio.ours)}: "
        f"{_interval(ratio.value, 2)} times"
        for ratio in analysis.ratios()
        if ratio.question == GRANIAN_UVICORN and ratio.ours_loses
    ]
    return Section("Where Granian loses to uvicorn", items=losses or ["Nowhere in this run."])


def _sweep(analysis: Analysis, vary: str) -> Section | None:
    rows = []
    throughput, latency = analysis.sweep(vary, "requests_per_second"), analysis.sweep(vary, "p99_ms")
    for name, points in analysis.sweep(vary, "cpu_us").items():
        for place, value in points:
            rate, slow = dict(throughput[name])[place], dict(latency[name])[place]
            rows.append([name, f"{place:g}", _interval(rate, 0), _interval(slow, 2), _interval(value, 1)])
    if not rows:
        return None
    header = ["contender", vary, "requests/s [95 %]", "p99 ms [95 %]", "server CPU µs/request [95 %]"]
    return Section(f"Against {vary}", header=header, rows=rows)


def _method(analysis: Analysis) -> Section:
    commands = [f"{key}: `{about['command']}`" for key, about in analysis.contenders.items()]
    text = [*METHOD.split("\n"), "How each was started:"]
    return Section("Method", text, items=commands)


def _tool(case: Case) -> str:
    counters = f", {case.counters} counters" if case.counters > 1 else ""
    return f"{case.tool}, {case.connections} connections{counters}"


def _number(value: Estimate | None, digits: int) -> str:
    return "-" if value is None else f"{value.median:,.{digits}f}"


def _interval(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "-"
    if value.rounds < 2:
        return _number(value, digits)
    return f"{value.median:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


def as_markdown(parts: list[Section]) -> str:
    lines: list[str] = []
    for number, part in enumerate(parts):
        lines += [f"{'#' if number == 0 else '##'} {part.title}", ""]
        for paragraph in part.text:
            lines += [paragraph, ""]
        lines += [f"- {item}" for item in part.items] + [""] * bool(part.items)
        if part.header:
            lines.append(_markdown_row(part.header))
            lines.append(_markdown_row(["---"] + ["---:"] * (len(part.header) - 1)))
            lines += [_markdown_row(row) for row in part.rows] + [""]
    return "\n".join(lines)


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def as_html(parts: list[Section], drawn: dict[str, str]) -> str:
    """One page that needs nothing else; the plots stand after what is missing and the audit."""
    body = []
    first_figures = next((n for n, part in enumerate(parts) if part.title.startswith("Figures")), len(parts) - 1)
    for number, part in enumerate(parts):
        if number == first_figures:
            body += [f"<figure><h2>{html.escape(title)}</h2>{svg}</figure>" for title, svg in drawn.items()]
        level = "h1" if number == 0 else "h2"
        body.append(f'<section class="{part.kind}"><{level}>{html.escape(part.title)}</{level}>')
        body += [f"<p>{_inline(paragraph)}</p>" for paragraph in part.text]
        if part.items:
            body.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in part.items) + "</ul>")
        if part.header:
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
            rows = ("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")
        body.append("</section>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Load lab</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head><body>{"".join(body)}</body></html>'
    )


def _inline(text: str) -> str:
    """`code`, **strong** and *emphasis* of Markdown."""
    marked = html.escape(text)
    for mark, tag in (("`", "code"), ("**", "strong")):
        pieces = marked.split(mark)
        marked = "".join(piece if n % 2 == 0 else f"<{tag}>{piece}</{tag}>" for n, piece in enumerate(pieces))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked)


def summary(results: Results) -> list[dict[str, Any]]:
    """The base figures of the tool that says most, for the terminal."""
    analysis = Analysis(results)
    tool = analysis.best_tool
    if tool is None:
        return []
    return [
        {
            "contender": case.contender,
            **{
                FIGURES[key].title: _number(analysis.estimate(case, key), FIGURES[key].digits)
                for key in ("requests_per_second", "mean_ms", "p99_ms", "cpu_us")
            },
            "exactness": results.audits.get(case.contender, {}).get("verdict", "-"),
        }
        for case in analysis.base_cases(tool)
    ]
