"""The workers' folder: nobody else's files are opened through it or removed from it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.service import environment
from loadtests.rig.waiting import PATIENCE
from pythonricing.telemetry.workers import PREFIX, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMBERS = ["alive.lock", "0.lock", "counter_0.db", "histogram_12.db", "gauge_livesum_3.db"]
FOREIGN = ["app.db", "counter_x.db", "notes.lock", "counter_0.db.bak"]


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(code: str, **variables: Path) -> str:
    """Run code as a server's supervisor would, and return what it prints."""
    command = [sys.executable, "-c", f"from pythonricing.telemetry import workers\n{code}"]
    given = {name: str(path) for name, path in variables.items()}
    kept = {name: value for name, value in environment({}).items() if name != VARIABLE}
    done = subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout.strip()


def filled(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True)
    for name in (*MEMBERS, *FOREIGN):
        (folder / name).write_text("")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_given_folder_loses_only_what_is_known_by_name(tmp_path: Path) -> None:
    given = filled(tmp_path / "given")
    run("workers.host()", PROMETHEUS_MULTIPROC_DIR=given)
    assert names(given) == set(FOREIGN)


def test_other_files_in_a_given_folder_are_not_read(tmp_path: Path) -> None:
    given = filled(tmp_path / "given")
    (given / "app.db").write_bytes(b"not of prometheus-client" * 100)
    code = """
import os
from pythonricing.stores.memory import MemoryStore
from pythonricing.telemetry.metrics import Metrics
from pythonricing.telemetry.writer import Writer
workers.host()
metrics = Metrics(MemoryStore(), Writer(os.open(os.devnull, os.O_WRONLY)))
print(metrics.render([]).decode())
"""
    assert "pythonricing_workers 1.0" in run(code, PROMETHEUS_MULTIPROC_DIR=given)


@pytest.mark.parametrize("linked", [True, False], ids=["a link", "a folder that others can write to"])
def test_what_another_user_left_for_us_is_not_touched(linked: bool, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    planted = base / f"{PREFIX}0-1-2"
    victim = filled(tmp_path / "victim" if linked else planted)
    if linked:
        planted.symlink_to(victim)
    else:
        planted.chmod(0o777)
    run("workers.host()", XDG_RUNTIME_DIR=base)
    assert names(victim) == {*MEMBERS, *FOREIGN}


@pytest.mark.parametrize("name", ["alive.lock", "0.lock"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_that_is_no_file_of_ours_is_not_opened(name: str, kind: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    if kind == "link":
        (given / name).symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(given / name)
    assert run("print(workers.join())", PROMETHEUS_MULTIPROC_DIR=given) == "None"
    assert not (tmp_path / "victim").exists()


def test_in_a_folder_that_others_can_write_to_the_workers_meet_in_one_of_their_own(tmp_path: Path) -> None:
    given = filled(tmp_path / "given")
    given.chmod(0o777)
    own = given / f"{PREFIX}{os.geteuid()}"
    code = (
        "import os; workers.host(); print(os.environ[workers.VARIABLE], workers.join().folder.stat().st_mode & 0o777)"
    )
    assert run(code, PROMETHEUS_MULTIPROC_DIR=given) == f"{own} {0o700}"
    assert names(given) - {own.name} == {*MEMBERS, *FOREIGN}


def test_a_folder_of_another_kind_is_refused_and_said(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    given.chmod(0o777)
    (given / f"{PREFIX}{os.geteuid()}").symlink_to(tmp_path)
    code = """
import sys
from loguru import logger
logger.remove()
logger.add(sys.stdout, format='{message}')
workers.host()
assert workers.join() is None
"""
    assert "not this user's alone" in run(code, PROMETHEUS_MULTIPROC_DIR=given)
