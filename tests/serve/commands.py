"""The program as a user starts it, and what runs on behalf of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loadtests.rig.service import environment
from loadtests.rig.waiting import free_port

PROGRAM = str(Path(sys.executable).with_name("pythonricing"))


def run(*arguments: str, home: Path, **settings: object) -> tuple[int, str, str]:
    """Run a command to its end: the exit status, stdout and stderr."""
    variables = environment(settings) | {"XDG_STATE_HOME": str(home)}
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=variables, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def processes_of(text: str) -> list[int]:
    """The processes whose command line holds `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def fails(home: Path, *arguments: str, **settings: object) -> str:
    """Run a command that must fail at once with one line and exit status 2; returns the line."""
    if arguments[0] == "serve" and "--port" not in arguments:
        arguments = (*arguments, "--port", str(free_port()))
    status, output, errors = run(*arguments, home=home, **settings)
    assert (status, output) == (2, "")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1, errors
    assert not processes_of(str(home))
    return errors.strip()
