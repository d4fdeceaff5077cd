"""The wheel and the sdist, as somebody gets them who has no checkout, on every Python at hand."""

from __future__ import annotations

import email
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from loadtests.rig.service import ROOT, environment
from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


def pythons() -> Iterator[str]:
    """Each Python on this machine that the package is for, one of each version."""
    known: dict[str, str] = {f"3.{sys.version_info.minor}": sys.executable}
    for minor in range(11, 15):
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for program in (shutil.which(f"python3.{minor}"), *map(str, installed)):
            if program and subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0:
                known.setdefault(f"3.{minor}", program)
    yield from known.values()


def run(*words: str | Path, **variables: str) -> str:
    environ = {name: value for name, value in environment({}).items() if name != "PYTHONPATH"} | variables
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environ, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs that build and install packages."""
    folder = tmp_path_factory.mktemp("tools")
    run(sys.executable, "-m", "venv", folder)
    pip = [str(folder / "bin" / "pip"), "--quiet", "install", "hatchling>=1.27", "pipx", "uv"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the tools can't be fetched: {done.stderr[-200:]}")
    return folder / "bin"


@pytest.fixture(scope="module")
def built(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = [str(tools / "hatchling"), "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(done, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = folder / f"pythonricing-{__version__}"
    subprocess.run([str(tools / "hatchling"), "build", "-t", "wheel", "-d", str(folder)], cwd=source, check=True)
    return folder


def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def test_the_long_description_shows_everywhere(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        metadata = email.message_from_bytes(archive.read(f"pythonricing-{__version__}.dist-info/METADATA"))
    text = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# pythonricing")
    # Links and pictures that lead into a checkout lead nowhere from there.
    assert not re.search(r"\]\((?!https?://|#)", text)
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)} <= set(
        metadata.get_all("Classifier", [])
    )


def test_the_archives_hold_what_is_run_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        names = archive.namelist()
    for name in ("serve/granian-log.json", "web/watch.html", "stores/redis/claim.lua", "stores/postgres/schema.sql"):
        assert f"pythonricing/{name}" in names
    assert {name.split("/")[0] for name in names} == {"pythonricing", f"pythonricing-{__version__}.dist-info"}
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        tops = {name.split("/")[1] for name in source.getnames()}
    assert {"pythonricing", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "hatch_build.py"} <= tops
    assert not {"tests", "loadtests", "deploy", "docs"} & tops


def test_the_workflow_audits_all_that_is_shipped(tools: Path, tmp_path: Path) -> None:
    """As far as its service isn't asked: pip-audit reads every lock but that of the tests."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    words = shlex.split(workflow["jobs"]["audit"]["steps"][-1]["run"])
    assert words[:2] == ["pipx", "run"]
    assert "--strict" in words  # what its service doesn't know would pass
    shipped = {f"requirements/{lock.name}" for lock in (ROOT / "requirements").glob("*.lock")} - {
        "requirements/dev.lock"
    }
    assert {word for word in words if word.endswith(".lock")} == shipped
    done = subprocess.run(
        [tools / "pipx", *words[1:], "--dry-run", "--progress-spinner", "off"],
        cwd=ROOT,
        env=environment({}) | {"PIPX_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (packages,) = re.findall(r"would have audited (\d+) packages", done.stderr)
    assert int(packages) > 20


@pytest.mark.parametrize("tool", ["pipx", "uv"])
@pytest.mark.parametrize("python", list(pythons()))
def test_it_is_installed_and_serves(tool: str, python: str, tools: Path, built: Path, tmp_path: Path) -> None:
    what = f"pythonricing[embedded,watch] @ {wheel(built).as_uri()}"
    programs = tmp_path / "bin"
    if tool == "pipx":
        folders = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(programs)}
        run(tools / "pipx", "install", "--python", python, what, **folders)
    else:
        folders = {"UV_TOOL_DIR": str(tmp_path / "uv"), "UV_TOOL_BIN_DIR": str(programs)}
        run(tools / "uv", "tool", "install", "--python", python, what, **folders)
    program = programs / "pythonricing"
    assert run(program, "--version") == f"pythonricing, version {__version__}\n"
    variables = {name: value for name, value in environment({}).items() if name != "PYTHONPATH"}
    variables["XDG_STATE_HOME"] = str(tmp_path)
    output, socket = tmp_path / "output", tmp_path / "own.sock"
    with output.open("wb") as written:
        words = [str(program), "serve", "--workers", "1", "--uds", str(socket)]
        process = subprocess.Popen(words, stdout=written, stderr=written, env=variables)
    try:
        wait_until(lambda: '"message":"store ' in output.read_text() or process.poll() is not None, "the service")
        assert process.poll() is None, output.read_text()
        assert run(program, "status", XDG_STATE_HOME=str(tmp_path)) == "default: 0 of 100\n"
        assert run(program, "set", "a", "--limit", "1", XDG_STATE_HOME=str(tmp_path)) == "a: 0 of 1\n"
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
