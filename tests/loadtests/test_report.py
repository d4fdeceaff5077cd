from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from loadtests import report
from loadtests.analysis import Analysis
from loadtests.contenders import Contender
from loadtests.measure import Results

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = {
    "cpu": "Example CPU",
    "cores": 2,
    "memory_gb": 8.0,
    "kernel": "Linux 6",
    "python": "CPython 3.11.7",
    "versions": {"granian": "2.8.7", "fastapi": ""},
    "environment": {},
    "load_average": [0.1, 0.1, 0.1],
    "revision": "abc1234",
}
OPTIONS = {
    "tools": ("wrk",),
    "workers": (2, 4),
    "connections": (32,),
    "counters": (1,),
    "rounds": 5,
    "seed": 1,
    "seconds": 3,
    "scenario": "admitted",
    "limit": 100,
}


def run(contender: Any, number: Any, rate: Any, cpu: Any, connections: int = 32, **changes: Any) -> Any:
    return {
        "contender": contender,
        "tool": "wrk",
        "connections": connections,
        "counters": 1,
        "round": number,
        "requests_per_second": rate,
        "mean_ms": 3.0,
        "p50_ms": 2.0,
        "p95_ms": 4.0,
        "p99_ms": 5.0,
        "max_ms": 9.0,
        "failures": 0,
        "cpu_us": cpu,
        "store_cpu_us": 5.0,
        "switches": 1.5,
        "store_commands": 40.0,
        "resident_mb": 120.0,
        "worker_mb": 45.0,
        "admitted": 1000,
        "generator_cores": 0.5,
        "generator_limit": 1.0,
        "generator_saturated": False,
        "machine_cores": 1.8,
        "other_cores": 0.0,
        "command": "wrk …",
        "percentiles": [(50.0, 2.0), (90.0, 3.0), (99.0, 5.0), (99.9, 8.0)],
        **changes,
    }


def made(runs: Any, names: Any = ("granian+redis", "uvicorn+redis"), workers: Any = (2,), **changes: Any) -> Any:
    contenders = {}
    for name in names:
        for count in workers:
            contender = Contender.parse(name).with_workers(count)
            contenders[contender.key] = {
                "app": contender.app,
                "server": contender.server,
                "store": contender.store,
                "workers": count,
                "options": list(contender.options),
                "name": name,
                "command": "granian …",
                "store_version": "Valkey 9" if contender.store == "redis" else "",
            }
    return Results(OPTIONS, MACHINE, contenders=contenders, runs=runs, started="2026-01-01", seconds=60, **changes)


@pytest.fixture
def results() -> Any:
    """Granian answers 1.5 times as much in every round, at the same CPU or a little more or less."""
    runs = []
    for number in range(1, 6):
        runs.append(run("granian+redis x2", number, 1500 * number, 100 + (-1) ** number))
        runs.append(run("uvicorn+redis x2", number, 1000 * number, 100))
    audit: dict[str, Any] = dict.fromkeys(("admitted", "distinct", "limit", "reading"), 100)
    audits = {"granian+redis x2": audit | {"refused": 3900, "failures": 0, "verdict": "exact"}}
    return made(runs, audits=audits)


def test_ratios_are_paired_and_said_in_words(results: Results) -> None:
    ratios = {ratio.figure.key: ratio for ratio in Analysis(results).ratios()}
    assert ratios["requests_per_second"].value.median == 1.5
    assert ratios["requests_per_second"].words == "better"
    assert ratios["cpu_us"].words == "no difference"
    assert all(ratio.question == "Granian against uvicorn" for ratio in ratios.values())


def test_a_loss_of_granian_is_said_outright(results: Results) -> None:
    for each in results.runs:
        each["p99_ms"] = 9.0 if each["contender"].startswith("granian") else 3.0
    losses = next(part for part in report.sections(Analysis(results)) if part.title.startswith("Where Granian loses"))
    assert losses.items == [
        "p99 ms, granian+redis x2 against uvicorn+redis x2, wrk, 32 connections: 3.00 [3.00, 3.00] times"
    ]


def test_a_generator_at_its_limit_stands_beside_the_figures_and_ratios_but_not_beside_cpu(results: Results) -> None:
    for each in results.runs:
        each["generator_saturated"] = True
        each["generator_cores"] = 0.98
    text = report.as_markdown(report.sections(Analysis(results)))
    assert "0.98 of 1 cores, **at its limit**" in text
    words = {ratio.figure.key: ratio.words for ratio in Analysis(results).ratios()}
    assert words["requests_per_second"] == "better, load generator at its limit"
    assert words["cpu_us"] == "no difference"


def test_other_programs_that_were_busy_are_told(results: Results) -> None:
    for each in results.runs:
        each["other_cores"] = 0.7
    text = report.as_markdown(report.sections(Analysis(results)))
    assert "other programs 0.70 cores" in text
    assert "**Not a quiet machine**: other programs used 0.70 cores in the median run" in text


def test_questions_pair_what_is_alike() -> None:
    names = ["granian+redis", "granian+memory", "constant+granian", "fastapi+uvicorn", "read-then-write+uvicorn"]
    names += ["one-claim+granian", "granian+redis[PYTHONRICING_REQUEST_LOG=off]"]
    found = Analysis(made([run(f"{name} x2", 1, 1000, 100) for name in names], names)).ratios()
    pairs = {(ratio.question, ratio.ours.contender, ratio.theirs.contender) for ratio in found}
    assert {pair for pair in pairs if "[" not in pair[1]} == {
        ("synced against unsynced", "granian+redis x2", "granian+memory x2"),
        ("against the constant answer", "granian+redis x2", "constant+granian x2"),
        ("against the constant answer", "granian+memory x2", "constant+granian x2"),
        ("against FastAPI", "granian+redis x2", "fastapi+uvicorn x2"),
        ("against FastAPI", "granian+memory x2", "fastapi+uvicorn x2"),
        ("against batches of one claim", "granian+redis x2", "one-claim+granian x2"),
        ("against read-then-write", "granian+redis x2", "read-then-write+uvicorn x2"),
        ("against read-then-write", "granian+memory x2", "read-then-write+uvicorn x2"),
    }
    with_log_off = "granian+redis[PYTHONRICING_REQUEST_LOG=off] x2"
    assert ("with options against without", with_log_off, "granian+redis x2") in pairs


def test_different_connections_and_workers_are_never_paired() -> None:
    runs = [run("granian+redis x2", 1, 1, 1), run("uvicorn+redis x2", 1, 1, 1, connections=64)]
    runs += [run("uvicorn+redis x4", 1, 1, 1)]
    assert Analysis(made(runs, workers=(2, 4))).ratios() == []


def test_a_sweep_keeps_everything_else_at_the_base() -> None:
    runs = [run("granian+redis x2", 1, 10, 1), run("granian+redis x4", 1, 20, 1), run("granian+redis x2", 1, 5, 1, 64)]
    analysis = Analysis(made(runs, workers=(2, 4)))
    points = [
        (place, value.median) for place, value in analysis.sweep("workers", "requests_per_second")["granian+redis"]
    ]
    assert points == [(2, 10), (4, 20)]
    sweep = analysis.sweep("connections", "requests_per_second")["granian+redis"]
    assert [place for place, _ in sweep] == [32, 64]


def test_the_report_has_what_a_reader_needs_to_judge_it(results: Results, tmp_path: Path) -> None:
    results.errors.append("uvicorn+redis x2, round 3: ab printed nothing")
    report.write(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for needed in ("Example CPU", "granian 2.8.7", "Valkey 9", "abc1234", "Linux 6", "seed 1", "ab printed nothing"):
        assert needed in text
    assert "| granian+redis x2 | 100 | 100 | 100 | 3900 | 0 | 100 | exact |" in text
    assert Results.from_json((tmp_path / "results.json").read_text()).runs[0]["round"] == 1


def test_the_page_needs_no_network_and_takes_its_ink_from_the_page(results: Results, tmp_path: Path) -> None:
    report.write(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?https?:""", page)
    assert "<script" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        assert "currentColor" in drawing
        assert "#010203" not in drawing
        ET.fromstring(drawing)
    assert "currentColor" not in (tmp_path / "throughput.svg").read_text()
    assert "prefers-color-scheme: dark" in page


def test_names_and_messages_cannot_break_the_page(results: Results, tmp_path: Path) -> None:
    results.errors.append("<script>alert(1)</script> | x")
    report.write(results, tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_a_comparison_for_a_page_says_its_command_and_has_headings_below_the_pages(results: Any) -> None:
    text = report.as_page(results, "python -m loadtests compare --publish")
    assert text.startswith("### `python -m loadtests compare --publish`\n")
    assert "Machine: Example CPU" in text
    assert "| granian+redis x2 | 100 | 100 |" in text
    assert {line.split(" ")[0] for line in text.splitlines() if line.startswith("#")} == {"###"}


def test_nothing_measured_still_makes_a_report(tmp_path: Path) -> None:
    report.write(made([], errors=["granian+redis x2: port 1 is taken"], interrupted=True), tmp_path)
    assert "port 1 is taken" in (tmp_path / "report.html").read_text()
    assert "Interrupted" in (tmp_path / "report.md").read_text()
