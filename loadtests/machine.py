"""What a figure depends on beside the code: the machine, the versions, the revision."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from loadtests.placement import CPUS, listed
from loadtests.revisions import ROOT

PACKAGES = (
    "granian",
    "uvicorn",
    "uvloop",
    "httptools",
    "starlette",
    "msgspec",
    "redis",
    "hiredis",
    "fastapi",
    "hypercorn",
    "gunicorn",
    "uvicorn-worker",
    "limits",
)


def describe() -> dict[str, Any]:
    """Machine, versions, server settings of the environment and git revision, as results.json keeps them."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES}
        | {"ab": _match("ab", "-V", r".*Version (\S+)"), "wrk": _match("wrk", "-v", r"wrk (\S+)")},
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("GRANIAN_", "UVICORN_"))},
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "affinity": listed(CPUS),
        "cgroup": _cgroup(),
        "autogroup": _read("/proc/sys/kernel/sched_autogroup_enabled") or "unknown",
        "revision": revision(),
    }


def _cgroup() -> str:
    """This process's, with the share of CPU that it may have at most where one is set."""
    path = next((line.split(":", 2)[2] for line in _read("/proc/self/cgroup").splitlines() if line[:3] == "0::"), "")
    return " ".join(filter(None, [path or "unknown", _read(f"/sys/fs/cgroup{path.rstrip('/')}/cpu.max")]))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def cpu_model() -> str:
    if sys.platform == "darwin":
        return _first_line("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def revision() -> str:
    commit = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if changed else commit or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _match(program: str, option: str, pattern: str) -> str:
    found = re.match(pattern, _first_line(program, option))
    return found[1] if found else ""


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()  # wrk -v ends with status 1
    return lines[0].strip() if lines else ""
