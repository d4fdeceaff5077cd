from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from loadtests import report, self_test, verdicts
from loadtests.__main__ import place
from loadtests.contenders import Contender
from loadtests.design import Options, plan
from loadtests.measure import Results
from loadtests.publish import markers
from loadtests.rig.service import ROOT
from tests.loadtests.browser import chromium

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
    "affinity": "0,1",
    "cgroup": "/example 200000 100000",
    "autogroup": "1",
    "revision": "abc1234",
}
NAMES = ("granian+redis", "uvicorn+redis", "fastapi+uvicorn", "constant+granian", "granian+memory")


def run(number: int, key: str, side: str, turn: int, rate: float, cpu: float, **changes: Any) -> dict[str, Any]:
    return {
        "pair": number,
        "key": key,
        "side": side,
        "slice": turn,
        "requests_per_second": rate,
        "cpu_us": cpu,
        "store_cpu_us": 5.0,
        "store_commands": 40.0,
        "worker_mb": 45.0,
        "command": "wrk …",
        "generator_share": 0.5,
        "machine_cores": 1.7,
        "other_cores": 0.0,
        "stolen_cores": 0.01,
        "server_affinity": "0,1",
        "store_affinity": "0,1",
        **changes,
    }


def made(rates: dict[str, float], slices: int = 12, changes: dict[str, float] | None = None) -> Results:
    """Every contender at its rate, up or down by 1 % in turns; CPU the other way."""
    options = Options(tuple(map(Contender.parse, NAMES)), workers=(2,), connections=(32,), seed=1)
    up, pairs = plan(options)
    results = Results(
        {"tool": "wrk", "scenario": "admitted", "seed": 1, "limit": 100, "placements": ("free",), "note": ""},
        MACHINE,
        pairs=[
            {"ours": p.ours, "theirs": p.theirs, "connections": 32, "counters": 1, "placement": "free"}
            | {"primary": p.primary, "name": p.name, "control": p.control}
            for p in pairs
        ],
        started="2026-01-01",
        seconds=60,
    )
    for key, contender in up.items():
        about = {"name": contender.name, "command": "granian …", "store_version": "Valkey 9"}
        results.contenders[key] = about
    for number, pair in enumerate(pairs):
        for turn in range(slices):
            for side, key in (("ours", pair.ours), ("theirs", pair.theirs)):
                rate = rates.get(key.split()[0], 1000.0) * (1 + 0.01 * (-1) ** (turn + (side == "ours")))
                results.runs.append(run(number, key, side, turn, rate, 1e5 / rate, **changes or {}))
    return results


@pytest.fixture
def results() -> Results:
    found = made({"granian+redis": 1000, "uvicorn+redis": 1000, "fastapi+uvicorn": 250, "constant+granian": 1020})
    audit: dict[str, Any] = dict.fromkeys(("admitted", "distinct", "limit"), 100)
    found.audits = {"granian+redis x2": audit | {"refused": 3900, "verdict": "exact"}}
    return found


def test_what_was_named_beforehand_comes_first_and_what_was_explored_is_marked(results: Results) -> None:
    found = verdicts.comparisons(results)
    assert [each.kind for each in found] == ["primary"] * 3 + ["A/A control"] * 2 + ["exploratory"] * 5
    said = {(each.pair["theirs"].split()[0], each.figure): each.verdict for each in found[:3]}
    assert said == {
        ("uvicorn+redis", "requests_per_second"): "equal within 5 %",
        ("fastapi+uvicorn", "requests_per_second"): "differs",
        ("constant+granian", "requests_per_second"): "equal within 5 %",
    }


def test_what_was_explored_is_adjusted_for_how_much_it_was() -> None:
    found = verdicts.comparisons(made({"granian+memory": 900}, slices=7))
    (explored,) = (each for each in found if each.name.endswith("memory x2") and each.figure == verdicts.THROUGHPUT)
    assert explored.ratio.p == 2 / 2**7
    assert explored.p == pytest.approx(min(1, explored.ratio.p * 5))
    assert explored.ratio.verdict == "differs"
    assert explored.verdict == "undecided"


def test_below_six_slices_nothing_is_said() -> None:
    assert {each.verdict for each in verdicts.comparisons(made({"fastapi+uvicorn": 10}, slices=5))} == {
        "too few slices"
    }


def test_an_aim_is_judged_by_its_bound(results: Results) -> None:
    said = {(aim.theirs, aim.figure): words for aim, _, words in verdicts.aims(results)}
    assert said["fastapi+uvicorn", "requests_per_second"] == "reached"
    assert said["fastapi+uvicorn", "cpu_us"] == "undecided"
    assert said["constant+granian", "requests_per_second"] == "reached"


def test_a_run_that_tells_equals_apart_says_so(results: Results) -> None:
    assert not verdicts.marks(results)
    for each in results.runs:
        if each["pair"] == 0 and each["side"] == "ours":
            each["requests_per_second"] *= 1.2
    assert "The A/A control differs" in verdicts.marks(results)[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machine_cores": 1.9}, "the machine was over 90 % busy"),
        ({"generator_share": 0.75}, "the generator used over 70 %"),
        ({"other_cores": 0.3}, "other programs used over 0.25 cores"),
        ({"stolen_cores": 0.3}, "the host kept over 0.25 cores"),
    ],
)
def test_what_disturbs_a_run_is_marked(changes: dict[str, float], says: str) -> None:
    assert [says in mark for mark in verdicts.marks(made({}, changes=changes))] == [True]


def test_the_report_has_what_a_reader_needs_to_judge_it(results: Results, tmp_path: Path) -> None:
    results.errors.append("uvicorn+redis x2, slice 3: ab printed nothing")
    report.write(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for needed in (
        *("Example CPU", "granian 2.8.7", "Valkey 9", "abc1234", "Linux 6", "seed 1", "ab printed nothing"),
        *("cgroup /example 200000 100000", "autogroup 1", "steal 0.01 cores", "cores 0,1"),
    ):
        assert needed in text
    assert (
        text.index("**equal within 5 %**") < text.index("A/A control") < text.index("ab printed") < text.index("| ---")
    )
    assert "| granian+redis x2 | 100 | 100 | 100 | 3,900 | exact |" in text
    assert Results.from_json((tmp_path / "results.json").read_text()).runs[0]["slice"] == 0


def test_the_page_needs_no_network_and_takes_its_ink_from_the_page(results: Results, tmp_path: Path) -> None:
    report.write(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?https?:""", page)
    assert "<script" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        assert "currentColor" in drawing
        assert "#010203" not in drawing
        said = ET.fromstring(drawing).get("aria-label") or ""
        assert "granian+redis x2 / uvicorn+redis x2, free, 32 connections: 1.00 [" in said
    assert "currentColor" not in (tmp_path / "forest.svg").read_text()
    assert "prefers-color-scheme: dark" in page


def test_names_and_messages_cannot_break_the_page(results: Results, tmp_path: Path) -> None:
    results.errors.append("<script>alert(1)</script> | x")
    report.write(results, tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_a_comparison_for_a_page_says_its_command_and_has_headings_below_the_pages(results: Results) -> None:
    results.options["command"] = "python -m loadtests compare --publish"
    text = report.as_page(results)
    assert text.startswith("### `python -m loadtests compare --publish`\n")
    assert "Machine: Example CPU" in text
    assert {line.split(" ")[0] for line in text.splitlines() if line.startswith("#")} == {"###"}


def test_figures_go_to_the_page_that_they_are_about(results: Results) -> None:
    results.options["contenders"] = [{"app": "service"}]
    assert place(results) == ("benchmarks.md", "capacity")
    results.options["contenders"] = [{"app": "library"}]
    assert place(results) == ("library.md", "library")
    for page, name in (("benchmarks.md", "capacity"), ("benchmarks.md", "open"), place(results)):
        assert all(marker in (ROOT / "docs" / page).read_text() for marker in markers(name))


def test_nothing_measured_still_makes_a_report(tmp_path: Path) -> None:
    empty = made({}, slices=0)
    empty.errors, empty.interrupted = ["granian+redis x2: port 1 is taken"], True
    report.write(empty, tmp_path)
    assert "port 1 is taken" in (tmp_path / "report.html").read_text()
    assert "Interrupted" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_nothing_of_the_page_is_clipped(results: Results, tmp_path: Path, width: int) -> None:
    report.write(results, tmp_path)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_self_test_counts_false_alarms_and_finds_the_smallest_difference(results: Results) -> None:
    results.pairs = results.pairs[:1]
    results.runs = [each for each in results.runs if each["pair"] == 0]
    found = self_test.evaluate(results)
    assert {each.slices: each.windows for each in found if each.figure == verdicts.CPU} == {6: 2, 12: 1, 20: 0, 40: 0}
    assert self_test.total(found) == (0, 6)
    assert [each.smallest for each in found if each.slices == 12] == [3, 3]
    assert "False alarms: 0 of 6, 0.0%." in self_test.as_text(results)
