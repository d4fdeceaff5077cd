from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.rig.waiting import free_port
from loadtests.side_by_side import Row, Server, as_csv, as_text, saturation
from tests.loadtests.browser import chromium

LOCUSTFILE = str(Path(__file__).parents[2] / "loadtests" / "locustfile.py")
ROOT = Path(__file__).parents[2]


def locust(tmp_path: Path, *words: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--server-workers", "1", *words]
    with (tmp_path / "locust.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **environment}
        )


def headless(tmp_path: Path, *words: str, **environment: str) -> Any:
    process = locust(tmp_path, "--headless", "-u", "8", "-r", "8", "-t", "3s", *words, **environment)
    process.wait(120)
    return process.returncode, (tmp_path / "locust.log").read_text()


def test_a_row_has_what_its_scenario_was_answered_in_its_turns() -> None:
    row = Row(Server("granian", "http://127.0.0.1:1", None), "burst")
    row.limit = 90
    row.begin()
    for number in range(1, 101):
        row.record(float(number), failed=number == 7, admitted=number <= 90, refused=number > 90)
    row.end(2.0)
    row.begin()
    row.end(4.0)
    cells = row.cells()
    assert (cells["name"], cells["scenario"], cells["requests"], cells["failures"]) == ("granian", "burst", 100, 1)
    assert cells["admitted"] == "90 of 90"
    assert cells["p50"] == pytest.approx(50, rel=0.03)
    assert cells["p99"] == pytest.approx(99, rel=0.03)
    assert (cells["cpu"], cells["memory"]) == ("-", "-")
    ((at, rate, p99, cpu),) = row.points
    assert (at, cpu) == (2.0, None)
    assert p99 == pytest.approx(cells["p99"], abs=0.01)
    assert cells["rps"] == pytest.approx(rate, rel=0.01)
    assert "granian" in as_text([row])
    assert next(csv.DictReader(as_csv([row]).splitlines()))["Admitted of limit"] == "90 of 90"
    row.reset()
    assert (row.cells()["requests"], row.points) == (0, [])


def test_locust_says_when_it_is_its_own_limit() -> None:
    assert saturation(30) == "Locust itself used up to 30 % of a core."
    assert "it is saturated" in saturation(99)


def test_without_a_web_ui_it_measures_both_servers_and_writes_what_locust_writes(tmp_path: Path) -> None:
    prefix = tmp_path / "run"
    words = ("--csv", str(prefix), "--html", str(tmp_path / "report.html"))
    status, said = headless(
        tmp_path, *words, "--turn", "0.3", "GranianBurst", "UvicornBurst", "GranianNamed", "UvicornNamed"
    )
    assert status == 0, said
    table = csv.DictReader((tmp_path / "run_side_by_side.csv").read_text().splitlines())
    rows = {f"{row['Server']} {row['Scenario']}": row for row in table}
    expected = {f"{server} {scenario}" for server in ("granian", "uvicorn") for scenario in ("burst", "named")}
    assert rows.keys() == expected
    for row in rows.values():
        assert int(row["# Requests"]) > 0
        assert row["# Failures"] == "0"
        assert float(row["CPU µs/request"]) > 0
        assert float(row["Memory (MB)"]) > 10
    names = {row["Name"] for row in csv.DictReader((tmp_path / "run_stats.csv").read_text().splitlines())}
    assert names == expected | {"Aggregated"}
    assert "granian burst" in (tmp_path / "report.html").read_text()
    assert "Side by side" in said
    assert "Locust itself used up to" in said


# What was abandoned expires after a second, a third of a third again after another one, and so on: some seconds.
def test_a_sale_in_which_a_third_abandons_sells_out_exactly_and_ends(tmp_path: Path) -> None:
    prefix = tmp_path / "run"
    status, said = headless(tmp_path, "-t", "90s", "--csv", str(prefix), "GranianSale")
    assert status == 0, said
    (row,) = csv.DictReader((tmp_path / "run_side_by_side.csv").read_text().splitlines())
    assert (row["Scenario"], row["Admitted of limit"]) == ("sale", "300 of 300")
    assert (row["# Failures"], row["Sums wrong"]) == ("0", "0")


def test_a_server_that_cannot_start_ends_the_run_with_a_clear_line(tmp_path: Path) -> None:
    status, said = headless(tmp_path, "--server-store", "oracle")
    assert status == 1
    assert "loadtests: granian+oracle: a contender is" in said
    assert "Traceback" not in said


@contextmanager
def web_ui(tmp_path: Path) -> Any:
    port = free_port()
    process = locust(tmp_path, "--class-picker", "--web-host", "127.0.0.1", "--web-port", str(port))
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "locust.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_stopping_locust_stops_both_servers(tmp_path: Path) -> None:
    with web_ui(tmp_path) as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        assert len([child for child in children if "valkey" in child.name()]) == 2
    _, running = psutil.wait_procs(children, timeout=20)
    assert not [each for each in running if each.status() != psutil.STATUS_ZOMBIE]


def test_a_taken_port_of_the_web_ui_ends_it_with_a_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = locust(tmp_path, "--class-picker", "--web-host", "127.0.0.1", "--web-port", port)
        assert process.wait(60) != 0
    said = (tmp_path / "locust.log").read_text()
    assert f"port {port} is taken" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_a_run_started_from_the_browser_shows_rows_and_charts_in_the_tab(
    tmp_path: Path, width: int, scheme: str
) -> None:
    with web_ui(tmp_path) as (_, url), chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(url)
        page.get_by_label("Number of users").fill("8")
        page.get_by_label("Ramp up").fill("8")
        page.get_by_role("button", name="Start").click()
        page.get_by_role("tab", name="Locust").or_(page.get_by_role("tab", name="Statistics")).first.wait_for()
        page.goto(f"{url}/?tab=side-by-side")
        for server in ("granian", "uvicorn"):
            row = page.get_by_role("row").filter(has_text=server).first
            row.wait_for(timeout=30_000)
            requests = row.get_by_role("cell").nth(3)
            page.wait_for_function(
                "cell => Number(cell.textContent) > 0", arg=requests.element_handle(), timeout=30_000
            )
            first = float(requests.text_content())
            page.wait_for_function(
                "([cell, first]) => Number(cell.textContent) != first",
                arg=[requests.element_handle(), first],
                timeout=30_000,
            )
            cells = [cell.text_content() for cell in row.get_by_role("cell").all()]
            assert cells[1] == "steady"
            assert cells[7] == "0"
            assert float(cells[8]) > 0
            assert float(cells[9]) > 10
            assert " of " in cells[10]
        headers = [cell.text_content() for cell in page.get_by_role("columnheader").all()]
        assert headers[:2] == ["Server", "Scenario"]
        charts = page.locator("#side-by-side-charts svg")
        page.wait_for_function("document.querySelectorAll('#side-by-side-charts polyline').length == 3 * 8")
        assert [chart.get_attribute("aria-label").split(",")[0] for chart in charts.all()] == [
            *("Requests/s", "p99 (ms)", "CPU µs/request")
        ]
        assert "Locust itself used" in page.locator("#side-by-side-charts").text_content()
        box = charts.last.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= width
        page.screenshot(path=tmp_path / "side-by-side.png", full_page=True)
        with urllib.request.urlopen(f"{url}/side-by-side/csv", timeout=10) as answer:
            assert {row["Server"] for row in csv.DictReader(answer.read().decode().splitlines())} == {
                "granian",
                "uvicorn",
            }
        page.get_by_role("tab", name="Failures").click()
        page.wait_for_function("!document.getElementById('side-by-side-charts')")
