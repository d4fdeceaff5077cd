from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loadtests import profile as module
from loadtests.contenders import Contender
from loadtests.profile import ProfileError, profile
from loadtests.tools import TOOLS

if TYPE_CHECKING:
    from pathlib import Path


TOOL = next((name for name, tool in TOOLS.items() if tool.available()), "wrk")
needs_a_tool = pytest.mark.skipif(not TOOLS[TOOL].available(), reason="neither wrk nor ab is installed")


def run(*words: str, **options: Any) -> Any:
    command = [sys.executable, "-m", "loadtests", "profile", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


@needs_a_tool
def test_the_flame_graph_shows_the_path_of_a_claim(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "profile.svg"
    words = ("--contender", "granian+memory", "--tool", TOOL, "--seconds", "2", "--connections", "4")
    done = run(*words, "--output", str(picture))
    if done.returncode and "ermission" in done.stderr:
        pytest.skip(f"this machine lets nobody look into a process: {done.stderr.strip()}")
    assert (done.returncode, done.stdout.strip()) == (0, str(picture)), done.stderr
    drawn = picture.read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert "pythonricing/web/" in drawn
    assert "pythonricing/counting/" in drawn


@needs_a_tool
def test_a_worker_that_cant_be_looked_into_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "youngest", lambda pid: 2**22 + 1)  # above every process id
    with pytest.raises(ProfileError, match=r"py-spy could not look into the worker: .") as error:
        profile(Contender.parse("granian+memory").with_workers(1), TOOLS[TOOL], 1, 2, tmp_path / "profile.svg")
    assert "\n" not in str(error.value)


def test_a_tool_that_is_not_installed_is_named(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "profile.svg"), env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: wrk is not installed: it is in wrk"
