"""Podman for the tests: the images that they need, and how to build where the network asks for its own settings."""

from __future__ import annotations

import configparser
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests.rig.waiting import wait_until

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/pythonricing:latest"
STORE_IMAGE = "docker.io/valkey/valkey:8.1"
#: What playfile.yaml makes.
POD, VOLUME, SECRET = "pythonricing", "pythonricing-data", "pythonricing-admin"


class PodmanError(AssertionError):
    """A podman command failed. Its text is the command and what it said."""


def podman(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """Run a podman command and return its stdout. Raises PodmanError."""
    done = subprocess.run(["podman", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise PodmanError(f"podman {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def succeeds(*arguments: str) -> bool:
    return subprocess.run(["podman", *arguments], capture_output=True, check=False).returncode == 0


def inspect(name: str, kind: str = "container") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("inspect", "--type", kind, name))[0]
    return found


def log(container: str) -> list[dict[str, Any]]:
    """The records of everything that a container wrote; raises if a line of stdout or stderr is not JSON."""
    done = subprocess.run(["podman", "logs", container], capture_output=True, text=True, check=True)
    return [json.loads(line)["record"] for line in (done.stdout + done.stderr).splitlines()]


def numbers(records: list[dict[str, Any]], counter: str) -> list[int]:
    """The numbers whose admission a log shows, for claims of one number each."""
    return [record["extra"]["request_count"] for record in records if record["extra"].get("counter") == counter]


def logged(counter: str, expected: int, *containers: str) -> list[int]:
    """The numbers that the containers' logs show, sorted, once there are at least as many as expected."""

    def found() -> list[int] | None:
        shown = sorted(number for each in containers for number in numbers(log(each), counter))
        return shown if len(shown) >= expected else None

    shown: list[int] = wait_until(found, f"{expected} lines in the logs")
    return shown


def configure(folder: Path) -> None:
    """On a machine without systemd, such as a container or a CI runner, tell podman to do without, in limits it has."""
    if "CONTAINERS_CONF" in os.environ or os.getuid() or Path("/run/systemd/system").exists():
        return
    limits = [
        f'"{name}={hard}:{hard}"'
        for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
        if (hard := min(resource.getrlimit(kind)[1], 4096)) > 0
    ]
    lines = ["[containers]", f"default_ulimits=[{','.join(limits)}]", "[engine]", 'cgroup_manager="cgroupfs"']
    if shutil.which("crun") is None:
        lines.append('runtime="runc"')
    configuration = folder / "containers.conf"
    configuration.write_text("\n".join([*lines, ""]))
    os.environ["CONTAINERS_CONF"] = str(configuration)


def build(folder: Path, tag: str, *arguments: str) -> None:
    """`podman build`, with this machine's certificate authorities and package index, if it has its own."""
    podman("build", *_network_settings(folder), "--tag", tag, *arguments, str(ROOT))


def make_image(folder: Path) -> None:
    """`make image`, likewise."""
    arguments = shlex.join(_network_settings(folder))
    done = subprocess.run(["make", "image", f"ARGS={arguments}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _network_settings(folder: Path) -> list[str]:
    options = ["--network", "host"]
    settings = configparser.ConfigParser(interpolation=None)
    settings["global"] = {}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        key, value = name.rpartition(".")[2], value.strip("'\"")
        if key in ("index-url", "trusted-host", "proxy", "timeout"):
            settings["global"][key] = value
    variables = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    authorities = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    if authorities and Path(authorities).is_file():
        options += ["--volume", f"{Path(authorities).resolve()}:/run/authorities.crt:ro"]
        settings["global"]["cert"] = "/run/authorities.crt"
    if settings["global"]:
        configuration = folder / "pip.conf"
        with configuration.open("w") as file:
            settings.write(file)
        options += ["--volume", f"{configuration}:/etc/pip.conf:ro"]
    return options
