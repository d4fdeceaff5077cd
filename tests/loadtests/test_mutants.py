"""The lab notices every wrong service: `compare` and Locust end with status 1 and say what was wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from loadtests.__main__ import main
from loadtests.contenders import APPS, PEERS, UNLIMITED, App, Contender
from loadtests.running import Running
from loadtests.tools import TOOLS
from tests.loadtests.mutants import MUTANTS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def contender(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def add(name: str) -> str:
        app = App(f"tests.loadtests.mutants:{name}", ("redis",), is_service=True, has_counters=True)
        spelled = name.replace("_", "-")
        for apps in (PEERS, APPS):
            monkeypatch.setitem(apps, spelled, app)
        return f"{spelled}+granian"

    return add


@pytest.mark.parametrize("name", MUTANTS)
def test_a_comparison_notices_a_wrong_service(name: str, contender: Callable[[str], str], tmp_path: Path) -> None:
    tool = next(tool for tool in TOOLS.values() if tool.available())
    words = ["compare", "--contender", contender(name), "--workers", "1", "--slices", "1", "--tool", tool.name]
    done = CliRunner().invoke(main, [*words, "--placement", "free", "--output", str(tmp_path)])
    assert done.exit_code == 1, done.output
    found = json.loads((tmp_path / "results.json").read_text())
    (audit,) = found["audits"].values()
    assert audit["verdict"] != "exact"
    assert any(audit["verdict"] in error for error in found["errors"])


@pytest.mark.parametrize("name", MUTANTS)
def test_locust_notices_a_wrong_service(name: str, contender: Callable[[str], str], tmp_path: Path) -> None:
    with Running(Contender.parse(contender(name)), UNLIMITED) as running:
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            "loadtests/locustfile.py",
            "--headless",
            "-u",
            "16",
            "-r",
            "16",
        ]
        scenario = "Burst" if name.startswith(("oversells", "refuses")) else "Named"
        environment = {"LOADTESTS_TARGETS": f"mutant={running.url}", "PYTHONRICING_ADMIN_TOKEN": running.token}
        # Until each fault has certainly happened, however slow the machine is.
        environment |= {"LOADTESTS_CLAIMS": "4000"}
        done = subprocess.run(
            [*command, "-t", "200s", "--only-summary", f"Mutant{scenario}"],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 1, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert any(
        words in said
        for words in (
            "over the limit",
            "given twice",
            "claims were given",
            "while there was room",
            "503:",
            "of 1000 given",
            "was set",
        )
    )


def test_the_right_service_passes_both(contender: Callable[[str], str], tmp_path: Path) -> None:
    """What the mutants are made of isn't what is noticed."""
    tool = next(tool for tool in TOOLS.values() if tool.available())
    words = ["compare", "--contender", "granian+redis", "--workers", "1", "--slices", "1", "--tool", tool.name]
    done = CliRunner().invoke(main, [*words, "--placement", "free", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
