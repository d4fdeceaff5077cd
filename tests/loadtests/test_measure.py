from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.contenders import UNLIMITED, Contender
from loadtests.measure import Case, Lab, Options, on_signals, plan, unexpected
from loadtests.tools import Outcome


def options(*names: Any, **changes: Any) -> Any:
    contenders = tuple(map(Contender.parse, names or ("granian+redis", "uvicorn+redis")))
    return Options(**{"contenders": contenders, "workers": (2,), "connections": (32,), "tools": ("wrk",), **changes})


class Quiet:
    """Nobody watches."""

    def __init__(self) -> None:
        self.measurements: list[dict[str, Any]] = []

    def phase(self, text: str, steps: int) -> None: ...

    def step(self, text: str) -> None: ...

    def measured(self, run: Any) -> None:
        self.measurements.append(run)

    def trouble(self, text: str) -> None: ...


def test_every_tool_measures_the_base_and_one_tool_the_sweeps() -> None:
    up, cases = plan(
        options("granian+redis", workers=(2, 4), connections=(32, 1), counters=(1, 100), tools=("ab", "ab -k", "wrk"))
    )
    assert [contender.key for contender in up] == ["granian+redis x2", "granian+redis x4"]
    assert set(cases) == {
        Case("granian+redis x2", "ab", 10),
        Case("granian+redis x2", "ab -k", 10),
        Case("granian+redis x2", "wrk", 32),
        Case("granian+redis x4", "wrk", 32),
        Case("granian+redis x2", "wrk", 1),
        Case("granian+redis x2", "wrk", 32, 100),
    }


def test_workers_that_count_for_themselves_and_peers_have_no_named_counters() -> None:
    _, cases = plan(options("granian+memory", "fastapi+uvicorn", counters=(1, 100)))
    assert all(case.counters == 1 for case in cases)


def test_the_scenario_decides_the_limit() -> None:
    limits = {name: options(scenario=name).start_limit for name in ("admitted", "halted", "sale")}
    assert limits == {"admitted": UNLIMITED, "halted": 0, "sale": 100}


def test_statuses_that_cannot_be_right_are_failures() -> None:
    service, constant = Contender.parse("granian+redis"), Contender.parse("constant+granian")
    outcome = Outcome(100, 1.0, 1, 1, 1, 1, 1, failures=0, non_2xx=7, percentiles=[])
    assert unexpected(outcome, "admitted", service) == 7
    assert unexpected(outcome, "halted", service) == 93
    assert unexpected(outcome, "sale", service) == 0
    assert unexpected(outcome, "halted", constant) == 7


class Rehearsal(Lab):
    """A lab that only writes down what it would measure."""

    def __init__(self, options: Options) -> None:
        super().__init__(options, Quiet())
        self.order: list[tuple[int, str]] = []

    def measure_case(self, case: Case, number: int) -> None:
        self.order.append((number, case.contender))

    def is_up(self, contender: str) -> bool:
        return True

    def rehearse(self) -> list[tuple[int, str]]:
        _, cases = plan(self.options)
        self.measure(cases)
        return self.order


def test_every_round_has_everyone_once_in_an_order_of_its_own() -> None:
    names = ("granian+redis", "uvicorn+redis", "granian+memory", "uvicorn+memory")
    order = Rehearsal(options(*names, rounds=6, seed=1)).rehearse()
    rounds = [[contender for turn, contender in order if turn == number] for number in range(1, 7)]
    assert all(sorted(each) == sorted(rounds[0]) for each in rounds)
    assert len(rounds[0]) == 4
    assert len({tuple(each) for each in rounds}) > 1
    assert Rehearsal(options(*names, rounds=6, seed=1)).rehearse() == order


def test_a_tool_that_measures_once_measures_in_the_first_round() -> None:
    order = Rehearsal(options("granian+redis", tools=("wrk", "locust"), rounds=3, once=("locust",))).rehearse()
    assert [number for number, _ in order] == [1, 1, 2, 3]


def test_an_interrupt_that_is_swallowed_ends_the_measurement_all_the_same() -> None:
    class Deaf(Rehearsal):
        def measure_case(self, case: Case, number: int) -> None:
            super().measure_case(case, number)
            with contextlib.suppress(KeyboardInterrupt):  # as Python itself does in what it runs after a fork
                signal.raise_signal(signal.SIGTERM)

    lab = Deaf(options(rounds=6))
    with on_signals(lab.interrupt), pytest.raises(KeyboardInterrupt):
        lab.rehearse()
    assert lab.results.interrupted
    assert len(lab.order) == 1


def compare(tmp_path: Path, *words: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "loadtests", "compare", "--output", str(tmp_path), "--limit", "10", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def results(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "results.json").read_text())


SHORT = ("--tool", "ab", "--requests", "200", "--rounds", "2", "--workers", "1", "--connections", "4")

needs_ab = pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")


@needs_ab
def test_a_contender_that_does_not_start_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    process = compare(
        tmp_path, *SHORT, "--contender", "granian+redis", "--contender", "constant+uvicorn[--no-such-option]"
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "constant+uvicorn[--no-such-option] x1: it ended while starting: Error: No such option" in said
    found = results(tmp_path)
    assert [run["contender"] for run in found["runs"]] == ["granian+redis x1"] * 2
    assert found["audits"]["granian+redis x1"]["verdict"] == "exact"
    assert all(run["failures"] == 0 and run["cpu_us"] > 0 and run["store_commands"] > 0 for run in found["runs"])
    assert "No such option" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("<svg") >= 3


@needs_ab
def test_a_contender_that_dies_is_named_and_the_others_go_on() -> None:
    class KillsOne(Lab):
        def start(self, contenders: list[Contender]) -> None:
            super().start(contenders)
            os.kill(self.up["constant+uvicorn x1"].pid, signal.SIGKILL)

    asked = options("constant+granian", "constant+uvicorn", tools=("ab",), workers=(1,), requests=100, rounds=3)
    found = KillsOne(asked, Quiet()).run()
    assert {run["contender"] for run in found.runs} == {"constant+granian x1"}
    assert len(found.runs) == 3
    assert any("constant+uvicorn x1" in line and "it ended" in line for line in found.errors)


def test_a_tool_that_is_not_installed_is_named_with_its_package(tmp_path: Path) -> None:
    process = compare(tmp_path, *SHORT, "--contender", "constant+granian", PATH="/nonexistent")
    _, said = process.communicate(timeout=120)
    assert "ab is not installed: it is in apache2-utils" in said
    assert process.returncode == 1


def test_a_missing_store_skips_its_contenders(tmp_path: Path) -> None:
    words = [*SHORT[2:], "--contender", "constant+granian", "--contender", "granian+postgresql", "--tool", "ab"]
    process = compare(tmp_path, *words, PYTHONPATH=_without(tmp_path, "asyncpg"))
    _, said = process.communicate(timeout=120)
    assert "skipped granian+postgresql: " in said
    assert process.returncode == 1  # because it was asked for
    assert {run["contender"] for run in results(tmp_path)["runs"]} <= {"constant+granian x1"}


def _without(tmp_path: Path, package: str) -> Any:
    """A path on which a package can't be found."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name == {package!r} else find(name, package)\n"
    )
    return os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH"), str(Path.cwd())]))


@needs_ab
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_keeps_its_figures_and_leaves_nothing_running(tmp_path: Path, number: Any) -> None:
    words = [word if word != "2" else "1000" for word in SHORT]
    process = compare(tmp_path, *words, "--contender", "constant+granian", "--contender", "granian+redis")
    while "Measuring" not in process.stderr.readline():
        assert process.poll() is None
    descendants: dict[int, psutil.Process] = {}
    generators: set[int] = set()
    deadline = time.monotonic() + 60
    while len(generators) < 5:
        assert time.monotonic() < deadline, "it does not measure"
        descendants |= {each.pid: each for each in psutil.Process(process.pid).children(recursive=True)}
        for each in list(descendants.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                generators |= {each.pid} if each.name() == "ab" else set()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    found = results(tmp_path)
    assert found["interrupted"]
    assert found["runs"]
    assert "Interrupted" in (tmp_path / "report.md").read_text()
    _, running = psutil.wait_procs(descendants.values(), timeout=5)
    assert not [each for each in running if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_quick_comparison_ends_within_two_minutes_with_every_plot(tmp_path: Path) -> None:
    started = time.monotonic()
    process = compare(tmp_path, "--quick")
    process.communicate(timeout=200)
    assert time.monotonic() - started < 120
    assert process.returncode == 0
    page = (tmp_path / "report.html").read_text()
    for title in ("Throughput", "Latency distribution", "Server CPU a request", "Cost against workers"):
        assert f"<h2>{title}</h2><svg" in page
    assert "Cost against connections</h2><svg" in page
    audits = results(tmp_path)["audits"]
    assert [audits[f"{server}+redis x{os.cpu_count()}"]["verdict"] for server in ("granian", "uvicorn")] == [
        "exact"
    ] * 2
