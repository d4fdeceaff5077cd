from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from loadtests import curves, report
from loadtests.contenders import Contender
from loadtests.curves import Curves
from loadtests.design import Options
from loadtests.latencies import Latencies
from loadtests.measure import Results
from loadtests.tools import TOOLS
from tests.loadtests.browser import chromium
from tests.loadtests.test_measure import Quiet
from tests.loadtests.test_report import MACHINE

if TYPE_CHECKING:
    from pathlib import Path

OURS, THEIRS = "granian+redis x2", "uvicorn+redis x2"


def run(key: str, rate: float, turn: int, ms: float, **changes: Any) -> dict[str, Any]:
    latencies = Latencies()
    for number in range(100):
        latencies.add(ms * (1 + number / 1000))
    return {
        "key": key,
        "rate": rate,
        "slice": turn,
        "p99_ms": latencies.percentile(99),
        "cpu_us": 10 * ms,
        "latencies": latencies.encoded(),
        "answered": 100,
        "seconds": 1,
        "timed_out": 0,
        "lost": 0,
        "waited": 1,
        "late_p99_ms": 0.1,
        "void": False,
        "stolen_cores": 0.0,
        "machine_cores": 1.0,
        "generator_share": 0.2,
        "other_cores": 0.0,
        **changes,
    }


@pytest.fixture
def results() -> Results:
    found = Results(
        {
            "open": True,
            "capacity": 4000.0,
            "scenario": "admitted",
            "seed": 1,
            "placements": ("free",),
            "limit": 100,
            "command": "…",
        },
        MACHINE,
        contenders={key: {"store_version": "Valkey 9"} for key in (OURS, THEIRS)},
        audits={OURS: {"verdict": "exact"}},
    )
    for turn in range(6):
        for rate, ours, theirs in ((1000, 2.0, 2.2), (2000, 4.0, 12.0), (4000, 40.0, 80.0)):
            found.runs += [run(OURS, rate, turn, ours + turn / 100), run(THEIRS, rate, turn, theirs + turn / 100)]
    return found


def test_the_knee_is_the_greatest_rate_below_which_nobody_waits_long(results: Results) -> None:
    assert curves.knee(results, OURS) == 2000
    assert curves.knee(results, THEIRS) == 1000
    assert curves.knee(results, "nobody") is None


def test_contenders_are_compared_slice_by_slice_at_the_same_rate(results: Results) -> None:
    found = curves.at_equal_load(results, OURS, THEIRS, 2000, "cpu_us")
    assert found is not None
    assert found.value == pytest.approx(4 / 12, rel=0.01)
    assert (found.slices, found.verdict) == (6, "differs")


def test_differences_at_equal_load_are_adjusted_for_how_many_there_are(results: Results) -> None:
    text = report.as_page(results)
    assert "0.33 [0.33, 0.34] undecided" in text  # six slices can't say it of six figures
    assert "differs" not in text
    results.runs = [each for each in results.runs if each["rate"] == 2000 and each["key"]]
    for each in [run(k, 2000, t, ms) for t in range(6, 12) for k, ms in ((OURS, 4.0), (THEIRS, 12.0))]:
        results.runs.append(each)
    assert "differs" in report.as_page(results)


def test_void_slices_are_left_out_and_said(results: Results, tmp_path: Path) -> None:
    results.runs.append(run(OURS, 1000, 9, 500.0, void=True))
    assert max(each["slice"] for each in curves.offered(results, OURS)[1000]) == 5
    report.write(results, tmp_path)
    assert "1 of 37 slices are void" in (tmp_path / "report.md").read_text()


def test_the_report_begins_with_half_the_knee_and_keeps_the_histograms(results: Results, tmp_path: Path) -> None:
    report.write(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("near half of it (1,000) a user waits") < text.index("| ---")
    page = (tmp_path / "report.html").read_text()
    assert page.count('role="img"') == 2
    assert "p99 over time, granian+redis x2, in ms: at 1000/s 2.2, 2.2" in page
    assert (tmp_path / "curves.svg").exists()
    assert len(list(tmp_path.glob("*.hgrm"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_nothing_of_the_page_is_clipped(results: Results, tmp_path: Path, width: int) -> None:
    report.write(results, tmp_path)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_all_are_offered_the_same_rates_and_every_answer_is_checked() -> None:
    tool = next((name for name, tool in TOOLS.items() if tool.available()), None)
    if tool is None:
        pytest.skip("neither wrk nor ab is installed")
    asked = Options(
        tuple(map(Contender.parse, ("granian+redis", "fastapi+uvicorn"))),
        workers=(1,),
        connections=(8,),
        tool=tool,
        requests=200,
        slices=1,
        limit=20,
    )
    lab = Curves(asked, Quiet(), (0.05, 0.1))
    found = lab.run()
    assert found.errors == []
    keys = ["granian+redis x1", "granian+redis x1 again", "fastapi+uvicorn x1"]
    rates = sorted({each["rate"] for each in found.runs})
    assert rates == [round(share * found.options["capacity"]) for share in (0.05, 0.1)]
    assert sorted((each["key"], each["rate"]) for each in found.runs) == sorted((k, r) for k in keys for r in rates)
    for each in found.runs:
        assert each["answered"] + each["timed_out"] + each["lost"] == each["offered"] > 0
        assert each["cpu_us"] > 0
