"""The Makefile as a user meets it: a service's target prints nothing of its own, and an old Python is one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON", "ARGS"))}
    return subprocess.run(
        ["make", *words], cwd=folder, env=kept | variables, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the Makefile looks at, and an environment that is set up."""
    for name in ("Makefile", "pyproject.toml", "requirements/serve.lock", "pythonricing/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    program(tmp_path / ".venv/bin/python", "")
    program(tmp_path / ".venv/bin/pythonricing", 'echo "$@"')
    (tmp_path / ".venv/serve").touch()
    return tmp_path


def test_make_run_prints_only_what_the_service_prints(checkout: Path) -> None:
    assert make(checkout, "run").stdout == "serve\n"
    assert make(checkout, "run", "ARGS=--port 8081").stdout == "serve --port 8081\n"


def test_make_help_names_every_target(checkout: Path) -> None:
    told = [line.split()[0] for line in make(checkout, "help").stdout.splitlines()]
    phony = re.findall(r"^\.PHONY: (.*)", (checkout / "Makefile").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(" ".join(phony).split())


def test_a_python_that_is_too_old_is_told_before_anything_is_made(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    python_of(checkout / "old", 3, 10)
    done = make(checkout, "run", PYTHON="./old")
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first == "./old is not Python 3.11 or newer: name one that is, as in PYTHON=python3.12 make run"
    assert all(line.startswith("make: ***") for line in rest)
    assert not (checkout / ".venv").exists()
    python_of(checkout / "new", 3, 11)
    assert make(checkout, ".venv/bin/python", PYTHON="./new").stderr == ""


def python_of(path: Path, *version: int) -> None:
    """A Python that believes itself to be of this version, and makes no environment."""
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    program(path, f"""test "$1" = -m || exec {sys.executable} -c '{code}' "$2" """)
