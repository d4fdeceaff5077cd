"""The report, verdict first: the same as Markdown and as one HTML page with its plots inside."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadtests import plots, verdicts
from loadtests.design import SCENARIOS
from loadtests.placement import PLACEMENTS
from loadtests.tools import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.measure import Results
    from loadtests.statistics import Ratio

CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2024; background: #fff; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 1rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
p, li { max-width: 60rem; }
figure { margin: 2rem 0; overflow-x: auto; }
svg { width: 100%; min-width: 520px; max-width: 800px; height: auto; }
code { font-size: .92em; }
.verdict li { font-size: 1.1em; }
.trouble { border-left: 4px solid #d84a3a; padding-left: 1rem; }
@media (prefers-color-scheme: dark) { body { color: #e3e6e9; background: #14171a; } }
"""

METHOD = """\
All contenders stay up, each with a store of its own. The two sides of a pair are measured next to each other, in \
slices of about a second and in the order ABBA or BAAB, so that what drifts meets both; the pairs are spread over the \
whole run in an order that is drawn. A slice of ours over the one beside it is a ratio; over all of them stand the \
Hodges-Lehmann estimate and the exact 95 % interval of the signed-rank test.
*Differs*: the interval leaves 1 out. *Equal within 5 %*: the whole interval lies between 1/1.05 and 1.05. Everything \
else is *undecided*. The throughput of at most three pairs is primary, named before the run; all else is exploratory, \
and said to differ only after Holm's adjustment. A run is ended by the width of its intervals or by time, never by \
what they say. The A/A control compares the first contender with a copy of itself.
The load is a closed loop: it measures capacity, and what a request costs there. It says nothing of what a user waits.
After every slice, what the counters have moved by, less what was answered as admitted, has to lie between 0 and the \
number of connections. Before anything is timed, the audit claims all of eight counters in sizes of 1 to 8, some with \
keys, and holds every number against the limits as they were set."""


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
    """results.json, report.md, report.html, a plot for a page (forest.svg or curves.svg), .hgrm files of curves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.to_json())
    parts, drawn = _all_sections(results), {}
    if results.options.get("open"):
        from loadtests import curves, curves_report

        drawn = curves_report.draw(results) if results.runs else {}
        curves.write_hgrm(results, folder)
    elif not results.options.get("choose"):
        drawn = plots.draw(results)
    (folder / "report.md").write_text(as_markdown(parts))
    (folder / "report.html").write_text(as_html(parts, drawn))
    if drawn:
        name = "curves.svg" if results.options.get("open") else "forest.svg"
        (folder / name).write_text(plots.for_readme(next(iter(drawn.values()))))


def _all_sections(results: Results) -> list[Section]:
    """Of a run of curves, of a chooser's questions, or of pairs."""
    if results.options.get("open"):
        from loadtests import curves_report

        return curves_report.sections(results)
    if results.options.get("choose"):
        from loadtests import choose_report

        return choose_report.sections(results)
    return sections(results)


def sections(results: Results) -> list[Section]:
    parts = [_verdict(results)]
    if results.errors or results.skipped or results.interrupted:
        parts.append(troubles(results))
    if results.runs:
        parts += [_comparisons(results), _capacity(results)]
    if verdicts.aims(results):
        parts.append(_aims(results))
    if results.audits:
        parts.append(_audits(results))
    return [*parts, machine_section(results), _method(results)]


def as_page(results: Results) -> str:
    """All but the method in Markdown, for a page that has headings of its own."""
    parts = [part for part in _all_sections(results) if part.title != "Method"]
    parts[0].title = f"`{results.options['command']}`"
    return re.sub("^#+", "###", as_markdown(parts), flags=re.MULTILINE)


def _verdict(results: Results) -> Section:
    found = verdicts.comparisons(results)
    items = [
        f"{each.name}: {interval(each.ratio, 2)} times the {verdicts.TITLES[each.figure]}: **{each.verdict}**"
        for each in found
        if each.kind == "primary"
    ]
    items += [
        f"A/A control, {verdicts.TITLES[each.figure]}: {interval(each.ratio, 3)}: {each.verdict}"
        for each in found
        if each.kind == "A/A control"
    ]
    if results.audits:
        exact = [key for key, audit in results.audits.items() if audit["verdict"] == "exact"]
        others = [f"{key} {audit['verdict']}" for key, audit in results.audits.items() if key not in exact]
        items.append(f"Exact: {', '.join(exact) or 'none'}" + (f". Not: {'; '.join(others)}" if others else ""))
    items += verdicts.marks(results)
    note = results.options.get("note")
    return Section("Load lab", [note] if note else [], items=items or ["Nothing was measured"], kind="verdict")


def troubles(results: Results) -> Section:
    items = ["Interrupted: what was measured until then is below."] if results.interrupted else []
    items += [f"Failed: {line}" for line in results.errors]
    items += [f"Skipped: {line}" for line in results.skipped]
    return Section("What is missing", items=items, kind="trouble")


def _comparisons(results: Results) -> Section:
    rows = [
        [
            each.name,
            verdicts.TITLES[each.figure].removesuffix(" at capacity"),
            each.place,
            interval(each.ratio, 3),
            str(each.ratio.slices),
            f"{each.verdict} ({each.kind})",
        ]
        for each in verdicts.comparisons(results)
    ]
    header = ["ours / theirs", "figure", "placement, load", "ratio [95 %]", "slices", "verdict"]
    return Section("Comparisons", header=header, rows=rows)


def _capacity(results: Results) -> Section:
    """What each contender did at the base, over all of its slices there and by placement."""
    rows = []
    base = results.pairs[0]
    places = dict.fromkeys(pair["placement"] for pair in results.pairs)
    for key, placement in ((key, placement) for key in results.contenders for placement in places):
        runs = verdicts.of_side(results, key, placement, base["connections"], base["counters"])
        if not runs:
            continue
        cells = [
            interval(verdicts.typical(runs, name), digits)
            for name, digits in (("requests_per_second", 0), ("cpu_us", 1))
        ]
        for name, digits in (("store_cpu_us", 1), ("store_commands", 0), ("worker_mb", 1)):
            value = verdicts.median(runs, name)
            cells.append("-" if value is None else f"{value:,.{digits}f}")
        generator = verdicts.median(runs, "generator_share") or 0.0
        busy = (verdicts.median(runs, "machine_cores") or 0.0) / results.machine["cores"]
        cores = f"{runs[0]['server_affinity']} / {runs[0]['store_affinity'] or '-'}"
        rows.append([key, placement, *cells, f"{generator:.0%}", f"{busy:.0%}", cores])
    header = [
        *("contender", "placement", "requests/s [95 %]", "server CPU µs/request [95 %]", "store CPU µs"),
        *("store commands/1000", "MB a worker", "generator", "machine", "cores of server / store"),
    ]
    tool = results.options["tool"]
    command = results.runs[0]["command"]
    return Section("Capacity", [f"{TOOLS[tool].explains}: `{command}`"], header=header, rows=rows)


def _aims(results: Results) -> Section:
    rows = [
        [
            f"{verdicts.TITLES[aim.figure]} against {aim.theirs}",
            f"at {'least' if aim.at_least else 'most'} {aim.ratio}",
            interval(ratio, 2),
            said,
        ]
        for aim, ratio, said in verdicts.aims(results)
    ]
    return Section("Aims", ["An aim is judged by the bound."], header=["", "aim", "measured", ""], rows=rows)


def _audits(results: Results) -> Section:
    rows = [
        [key, *(f"{audit[name]:,}" for name in ("admitted", "distinct", "limit", "refused")), audit["verdict"]]
        for key, audit in results.audits.items()
    ]
    header = ["contender", "admitted", "distinct numbers", "limit", "refused", "verdict"]
    text = [
        "24 clients claim all of 8 counters, in sizes of 1 to 8, some with keys, until every counter refuses single "
        "claims; applications without named counters are asked for 40 times the limit of their one."
    ]
    return Section("Exactness", text, header=header, rows=rows)


def machine_section(results: Results) -> Section:
    machine, options = results.machine, results.options
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    stores = sorted({about["store_version"] for about in results.contenders.values()} - {""})
    sold = f", limit {options['limit']}" if options["scenario"] == "sale" else ""
    stolen = sum(run.get("stolen_cores", 0.0) for run in results.runs) / max(1, len(results.runs))
    items = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}",
        f"Scheduling: cores {machine['affinity']}, cgroup {machine['cgroup']}, autogroup {machine['autogroup']}, "
        f"steal {stolen:.2f} cores",
        f"Python: {machine['python']}",
        f"Versions: {versions}",
        f"Stores: {', '.join(stores) or 'none'}",
        f"Revision: {machine['revision']}",
        f"Begun: {results.started}, took {results.seconds:.0f} s, load average before {machine['load_average'][0]}",
        f"Scenario: {options['scenario']} ({SCENARIOS[options['scenario']]}{sold}); seed {options['seed']}",
    ]
    items += [f"Placement {name}: {PLACEMENTS[name].explains}" for name in options["placements"] if name in PLACEMENTS]
    if machine["environment"]:
        settings = " ".join(f"{name}={value}" for name, value in machine["environment"].items())
        items.append(f"Environment: {settings}")
    return Section("Machine", items=items)


def _method(results: Results) -> Section:
    commands = [f"{key}: `{about['command']}`" for key, about in results.contenders.items()]
    return Section("Method", [*METHOD.split("\n"), "How each was started:"], items=commands)


def interval(value: Ratio | None, digits: int) -> str:
    """Below six slices the brackets are the range, and the verdict says that they are too few."""
    return "-" if value is None else f"{value.value:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


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
    """One page that needs nothing else; the plots stand right after the verdict and what is missing."""
    body = []
    after = max((n for n, part in enumerate(parts) if part.kind), default=0)
    for number, part in enumerate(parts):
        level = "h1" if number == 0 else "h2"
        body.append(f'<section class="{part.kind}"><{level}>{html.escape(part.title)}</{level}>')
        body += [f"<p>{_inline(paragraph)}</p>" for paragraph in part.text]
        if part.items:
            body.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in part.items) + "</ul>")
        if part.header:
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
            rows = ("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            body.append(f'<div class="wide" tabindex="0">{table}</div>')
        body.append("</section>")
        if number == after:
            body += [f"<figure><h2>{html.escape(title)}</h2>{svg}</figure>" for title, svg in drawn.items()]
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
    """The comparisons, for the terminal."""
    return [
        {
            "ours / theirs": each.name,
            "figure": verdicts.TITLES[each.figure],
            "placement, load": each.place,
            "ratio": interval(each.ratio, 2),
            "verdict": f"{each.verdict} ({each.kind})",
        }
        for each in verdicts.comparisons(results)
    ]
