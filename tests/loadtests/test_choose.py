from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from loadtests import choose, choose_report, report
from loadtests.choose import QUESTIONS, SERVERS, START, Chooser, compared, sides
from loadtests.contenders import Contender
from loadtests.design import Options
from loadtests.measure import Results
from loadtests.tools import TOOLS
from tests.loadtests.test_measure import Quiet
from tests.loadtests.test_report import MACHINE

if TYPE_CHECKING:
    from pathlib import Path

CONTROL, KEPT, WAITS = "A/A control: kept connections", "kept connections, 500/s", "a handler that waits 10 ms"


def made(ratios: dict[tuple[str, str], float], slices: int = 12, **changes: Any) -> Results:
    """Granian's figures so many times uvicorn's, up or down by 1 % in turns."""
    figures = {question: [figure for other, figure in ratios if other == question] for question, _ in ratios}
    options = {"choose": True, "figures": figures, "placements": (), "scenario": "admitted", "seed": 1, "limit": 100}
    results = Results(options | {"command": "python -m loadtests choose"}, MACHINE)
    for turn in range(slices):
        for question, names in figures.items():
            for side in (0, 1):
                values = {name: (100 * ratios[question, name] if side == 0 else 100.0) for name in names}
                values = {name: value * (1 + 0.01 * (-1) ** (turn + side)) for name, value in values.items()}
                results.runs.append({"question": question, "side": side, "slice": turn, **values, **changes})
    return results


def test_the_verdict_says_where_which_server_is_better(tmp_path: Path) -> None:
    ratios = {
        (CONTROL, "p99_ms"): 1.0,
        (KEPT, "p99_ms"): 0.5,
        (KEPT, "cpu_us"): 1.3,
        (WAITS, "requests_per_second"): 1.2,
        (WAITS, "cpu_us"): 1.0,
    }
    report.write(made(ratios), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"**Granian is better** in: {KEPT} (p99 ms) 0.50; {WAITS} (requests/s at capacity) 1.20" in text
    assert f"**uvicorn is better** in: {KEPT} (server CPU µs a request) 1.30\n" in text
    assert f"Equal within 5 %: {WAITS} (server CPU µs a request)" in text
    assert "The A/A control differs" not in text
    assert f"| {KEPT} | p99 ms | 50.00 [49.50, 50.50] | 100.00 [99.00, 101.00] | 0.50 [0.49, 0.51] | differs |" in text
    assert "The A/A control differs" in report.as_page(made({(CONTROL, "p99_ms"): 1.5}))
    assert "question by question" in (tmp_path / "report.html").read_text().lower()


def test_differences_are_adjusted_for_how_many_figures_there_are() -> None:
    many = {(KEPT, "cpu_us"): 1.2} | {(f"{n}", "cpu_us"): 1.0 for n in range(9)}
    assert next(row.verdict for row in choose_report.rows(made(many, slices=7))) == "undecided"
    assert next(row.verdict for row in choose_report.rows(made(many, slices=12))) == "differs"
    assert {row.verdict for row in choose_report.rows(made(many, slices=5))} == {"too few slices"}


def test_where_the_generator_was_late_only_latencies_are_void() -> None:
    late = made({(KEPT, "p99_ms"): 0.5, (KEPT, "cpu_us"): 1.3}, void=True)
    assert sides(late, KEPT, "p99_ms") == ({}, {})
    assert compared(late, KEPT, "p99_ms") is None
    assert compared(late, KEPT, "cpu_us") is not None
    assert "The latencies of 24 of 24 slices are void" in report.as_page(late)


def test_a_question_whose_tool_is_missing_is_skipped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    lab = Chooser(Options((), workers=(2,), connections=(32,)), Quiet(), memory=600)
    asked = [question.text for question in lab.questions]
    assert any("slow readers" in text for text in asked)
    assert not any("HTTP/2" in text or text in (WAITS, "answers of 16 KiB") for text in asked)
    assert any(line.endswith("h2load is not installed: it is in nghttp2-client") for line in lab.results.skipped)
    assert lab.results.options["memory"] == "memory under 500/s, 10 minutes"


def test_both_servers_are_asked_and_held_to_what_they_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute's worth of servers starting in a few seconds: the questions that no other test asks."""
    monkeypatch.setattr(choose, "WORKERS", 2)
    monkeypatch.setattr(choose, "READERS", 8)
    wanted = ("opened", "beside 100", "a graceful", *(["HTTP/2"] if TOOLS["h2load"].available() else []))
    questions = tuple(question for question in QUESTIONS if question.text.startswith(wanted))
    contenders = tuple(Contender.parse(f"{server}+redis") for server in SERVERS)
    options = Options(contenders, workers=(2,), connections=(8,), slices=1)
    found = Chooser(options, Quiet(), memory=1, questions=questions).run()
    assert found.errors == []
    runs = {(run["question"], run["side"]): run for run in found.runs}
    both = {(q.text, side) for q in questions for side in range(len(q.servers))}
    assert runs.keys() == both | {(text, side) for text in (START, "memory under 500/s, 1 s") for side in (0, 1)}
    for (question, _), run in runs.items():
        assert all(run[figure] >= 0 for figure in found.options["figures"][question]), run
    assert all(run["ready_s"] >= run["answered_s"] > 0 for run in found.runs if run["question"] == START)
    assert {key: audit["verdict"] for key, audit in found.audits.items()} == {
        f"{server}+redis x2": "exact" for server in SERVERS
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_table_ends_within_two_minutes(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "loadtests", "choose", "--quick", "--output", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=280, check=False).returncode == 0
    assert time.monotonic() - started < 120
    found = json.loads((tmp_path / "results.json").read_text())
    assert {run["question"] for run in found["runs"]} == set(found["options"]["figures"])
