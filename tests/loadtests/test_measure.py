from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests import report, tools
from loadtests.contenders import UNLIMITED, Contender
from loadtests.design import Options, Pair, plan
from loadtests.measure import Lab, on_signals, unexpected
from loadtests.running import Running
from loadtests.tools import Outcome

needs_ab = pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")


def options(*names: Any, **changes: Any) -> Any:
    contenders = tuple(map(Contender.parse, names or ("granian+redis", "uvicorn+redis")))
    return Options(**{"contenders": contenders, "workers": (2,), "connections": (32,), **changes})


class Quiet:
    """Nobody watches."""

    def __init__(self) -> None:
        self.measurements: list[dict[str, Any]] = []

    def phase(self, text: str, steps: int) -> None: ...

    def step(self, text: str) -> None: ...

    def measured(self, run: Any) -> None:
        self.measurements.append(run)

    def trouble(self, text: str) -> None: ...


def test_the_first_is_compared_with_each_and_with_a_copy_of_itself() -> None:
    up, pairs = plan(options("granian+redis", "uvicorn+redis", "granian+memory", "fastapi+uvicorn", "constant+granian"))
    first = "granian+redis x2"
    others = ["uvicorn+redis x2", "granian+memory x2", "fastapi+uvicorn x2", "constant+granian x2"]
    assert list(up) == [first, f"{first} again", *others]
    assert pairs[0] == Pair(first, f"{first} again", 32)
    assert pairs[0].control
    assert pairs[1:] == [Pair(first, other, 32, primary=other != others[-1]) for other in others]


def test_each_factor_is_explored_with_the_others_at_their_base() -> None:
    up, pairs = plan(
        options(
            *("granian+redis", "uvicorn+redis"),
            workers=(2, 4),
            connections=(32, 1),
            counters=(1, 100),
            placements=("free", "apart"),
        )
    )
    two, four = ("granian+redis x2", "uvicorn+redis x2"), ("granian+redis x4", "uvicorn+redis x4")
    assert set(up) == {*two, *four, "granian+redis x2 again"}
    assert pairs[1:] == [
        Pair(*two, 32, primary=True),
        Pair(*four, 32),
        Pair(*two, 32, placement="apart"),
        Pair(*two, 1),
        Pair(*two, 32, 100),
    ]


def test_workers_that_count_for_themselves_and_peers_have_no_named_counters() -> None:
    _, pairs = plan(options("granian+redis", "granian+memory", "fastapi+uvicorn", counters=(1, 100)))
    assert all(pair.counters == 1 for pair in pairs)


def test_all_can_be_compared_with_some_others_instead() -> None:
    named = tuple(map(Contender.parse, ("constant+granian", "fastapi+uvicorn")))
    up, pairs = plan(options("granian+redis", "granian+memory", against=named, workers=(2, 16), varied=4))
    ours, theirs = ("granian+redis", "granian+memory"), ("constant+granian", "fastapi+uvicorn")
    expected = [(f"{one} x2", f"{other} x2") for other in theirs for one in ours]
    assert [(pair.ours, pair.theirs) for pair in pairs[1:5]] == expected
    assert [pair.primary for pair in pairs] == [False, True, True, True, False, *[False] * 4]
    assert {(pair.ours, pair.theirs) for pair in pairs[5:]} == {(f"{a} x16", f"{b} x16") for b in theirs for a in ours}
    assert set(up) == {f"{name} x{n}" for name in (*ours, *theirs) for n in (2, 16)} | {"granian+redis x2 again"}


@needs_ab
def test_a_service_on_another_machine_is_a_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(Contender.parse("granian+redis[tls]"), 5) as there:
        asked = options(there.url, tool="ab", requests=100, slices=2, limit=10)
        monkeypatch.setenv("PYTHONRICING_ADMIN_TOKEN", there.token)
        found = Lab(asked, Quiet()).run()
        assert there.alive
        assert there.read("default")["limit"] == UNLIMITED
    assert found.errors == []
    assert {run["key"] for run in found.runs} == {there.url, f"{there.url} again"}
    assert all(run["requests"] == 100 and run["cpu_us"] is None for run in found.runs)
    assert found.audits[there.url]["verdict"] == "exact"
    found.options["command"] = "python -m loadtests compare --target …"
    report.write(found, tmp_path)
    assert there.url in (tmp_path / "report.md").read_text()
    assert "it can't be reached" in Lab(asked, Quiet()).run().errors[0]
    monkeypatch.delenv("PYTHONRICING_ADMIN_TOKEN")
    assert "its admin token is needed in PYTHONRICING_ADMIN_TOKEN" in Lab(asked, Quiet()).run().errors[0]


def test_the_scenario_decides_the_limit() -> None:
    limits = {name: options(scenario=name).start_limit for name in ("admitted", "halted", "sale")}
    assert limits == {"admitted": UNLIMITED, "halted": 0, "sale": 100}


def test_statuses_that_cannot_be_right_are_failures() -> None:
    service, constant = Contender.parse("granian+redis"), Contender.parse("constant+granian")
    outcome = Outcome(100, 1.0, failures=0, non_2xx=7)
    assert unexpected(outcome, "admitted", service) == 7
    assert unexpected(outcome, "halted", service) == 93
    assert unexpected(outcome, "sale", service) == 0
    assert unexpected(outcome, "halted", constant) == 7


class Rehearsal(Lab):
    """A lab that only writes down what it would measure: the first contender at so many times the rate of others."""

    def __init__(self, options: Options, better: float = 1.0) -> None:
        super().__init__(options, Quiet())
        self.order: list[tuple[Pair, str, int]] = []
        self.better = better

    def measure_slice(self, pair: Pair, number: int, key: str, turn: int) -> None:
        self.order.append((pair, key, turn))
        side = "ours" if key == pair.ours else "theirs"
        rate = self.better if side == "ours" else 1.0
        self.results.runs.append({"pair": number, "side": side, "slice": turn, "requests_per_second": rate})

    def is_up(self, key: str) -> bool:
        return True

    def rehearse(self) -> list[tuple[Pair, str, int]]:
        _, pairs = plan(self.options)
        self.measure(pairs)
        return self.order


def test_two_that_are_compared_are_measured_next_to_each_other_the_first_one_last() -> None:
    asked = options("granian+redis", "uvicorn+redis", "granian+memory", slices=6, explored=6, seed=1)
    order = Rehearsal(asked).rehearse()
    assert len(order) == 3 * 2 * 6
    firsts = set()
    for place in range(0, len(order), 4):
        block = order[place : place + 4]
        assert len({pair for pair, _, _ in block}) == 1
        keys = [key for _, key, _ in block]
        assert keys[0] == keys[3] != keys[1] == keys[2]
        assert [turn % 2 for _, _, turn in block] == [0, 0, 1, 1]
        firsts.add(keys[0] == block[0][0].ours)
    assert firsts == {True, False}
    assert Rehearsal(asked).rehearse() == order


def test_what_is_explored_is_spread_over_the_whole_run() -> None:
    names = ("granian+redis", "uvicorn+redis", "granian+memory", "fastapi+uvicorn", "constant+granian")
    order = Rehearsal(options(*names, slices=40, explored=12)).rehearse()
    places = [place for place, (pair, _, _) in enumerate(order) if pair.theirs == "constant+granian x2"]
    assert len(places) == 2 * 12
    assert places[0] > len(order) * 0.05
    assert places[-1] > len(order) * 0.9


@pytest.mark.parametrize("better", [1.0, 1.5])
def test_it_goes_on_until_it_is_narrow_whatever_it_finds(better: float) -> None:
    class Noisy(Rehearsal):
        def measure_slice(self, pair: Pair, number: int, key: str, turn: int) -> None:
            super().measure_slice(pair, number, key, turn)
            if key == pair.ours and turn < 40:
                noise = random.Random(f"{pair.theirs} {turn}").gauss(0, 0.2)
                self.results.runs[-1]["requests_per_second"] *= math.exp(noise)

    order = Noisy(options(slices=40, width=0.02), better).rehearse()
    done = max(turn for _, _, turn in order) + 1
    assert 40 < done < 120
    assert len(order) == 2 * 2 * done
    assert done == max(turn for _, _, turn in Noisy(options(slices=40, width=0.02), 1.0).rehearse()) + 1


def test_an_interrupt_that_is_swallowed_ends_the_measurement_all_the_same() -> None:
    class Deaf(Rehearsal):
        def measure_slice(self, pair: Pair, number: int, key: str, turn: int) -> None:
            super().measure_slice(pair, number, key, turn)
            with contextlib.suppress(KeyboardInterrupt):  # as Python itself does in what it runs after a fork
                signal.raise_signal(signal.SIGTERM)

    lab = Deaf(options(slices=6))
    with on_signals(lab.interrupt), pytest.raises(KeyboardInterrupt):
        lab.rehearse()
    assert lab.results.interrupted
    assert len(lab.order) == 4


def compare(tmp_path: Path, *words: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "loadtests", "compare", "--output", str(tmp_path), "--limit", "10", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def results(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "results.json").read_text())


SHORT = ("--tool", "ab", "--requests", "200", "--slices", "2", "--workers", "1", "--placement", "free")


@needs_ab
def test_a_contender_that_does_not_start_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    process = compare(
        tmp_path, *SHORT, "--contender", "granian+redis", "--contender", "constant+uvicorn[--no-such-option]"
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "constant+uvicorn[--no-such-option] x1: it ended while starting: Error: No such option" in said
    found = results(tmp_path)
    assert sorted(run["key"] for run in found["runs"]) == ["granian+redis x1"] * 2 + ["granian+redis x1 again"] * 2
    assert found["audits"]["granian+redis x1"]["verdict"] == "exact"
    assert all(run["failures"] == 0 and run["cpu_us"] > 0 and run["store_commands"] > 0 for run in found["runs"])
    assert "No such option" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("<svg") == 2


@needs_ab
def test_a_contender_that_dies_is_named_and_the_others_go_on() -> None:
    class KillsOne(Lab):
        def start(self, contenders: dict[str, Contender]) -> None:
            super().start(contenders)
            running = self.up["constant+uvicorn x1"]
            assert isinstance(running, Running)
            os.kill(running.pid, signal.SIGKILL)

    asked = options("constant+granian", "constant+uvicorn", tool="ab", workers=(1,), requests=100, slices=4)
    found = KillsOne(asked, Quiet()).run()
    assert {run["key"] for run in found.runs} == {"constant+granian x1", "constant+granian x1 again"}
    assert len(found.runs) == 8 + (1 if len(found.runs) % 2 else 0)
    assert any("constant+uvicorn x1" in line and "it ended" in line for line in found.errors)


@needs_ab
def test_what_the_counter_moved_is_held_against_what_was_answered() -> None:
    """Somebody claims behind the generator's back: more than its connections could have left behind."""

    class Intruder(Lab):
        def _figures(self, pair: Any, running: Any, key: str) -> dict[str, Any]:
            run = tools.run

            def claimed(*given: Any, **more: Any) -> Any:
                outcome = run(*given, **more)
                urllib.request.urlopen(
                    urllib.request.Request(f"{running.url}/counters/default?n=100", method="POST")
                ).close()
                return outcome

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("loadtests.measure.tools.run", claimed)
                patch.setattr("loadtests.measure.SETTLED", 0.2)
                return super()._figures(pair, running, key)

    found = Intruder(options("granian+redis", tool="ab", workers=(1,), requests=100, slices=1), Quiet()).run()
    assert any("the counter moved by 200, 100 claims were answered as admitted" in line for line in found.errors)


def test_a_tool_that_is_not_installed_is_named_with_its_package(tmp_path: Path) -> None:
    process = compare(tmp_path, *SHORT, "--contender", "constant+granian", PATH="/nonexistent")
    _, said = process.communicate(timeout=120)
    assert "ab is not installed: it is in apache2-utils" in said
    assert process.returncode == 1


@needs_ab
def test_a_missing_store_skips_its_contenders(tmp_path: Path) -> None:
    words = [*SHORT, "--contender", "constant+granian", "--contender", "granian+postgresql"]
    process = compare(tmp_path, *words, PYTHONPATH=_without(tmp_path, "asyncpg"))
    _, said = process.communicate(timeout=120)
    assert "skipped granian+postgresql: " in said
    assert process.returncode == 1  # because it was asked for
    assert {run["key"] for run in results(tmp_path)["runs"]} == {"constant+granian x1", "constant+granian x1 again"}


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
    assert page.count("<svg") == 2
    audits = results(tmp_path)["audits"]
    assert [audits[f"{server}+redis x{os.cpu_count()}"]["verdict"] for server in ("granian", "uvicorn")] == [
        "exact"
    ] * 2
