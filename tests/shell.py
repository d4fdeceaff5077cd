"""The shell lines of the pages, and a checkout in which they are typed: as they stand, but for the port."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from loadtests.rig.service import default_signals, environment
from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from tests.docs_check import FENCE, ROOT, pages

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Between a command and what a page says of it.
COMMENT = re.compile(r"\s{2,}# ")


def blocks(page: str) -> list[list[str]]:
    """The lines of each block of `sh` on a page, continued ones joined."""
    found = [block for language, block in FENCE.findall((ROOT / page).read_text()) if language == "sh"]
    return [block.replace("\\\n", "").splitlines() for block in found]


def every() -> dict[str, list[list[str]]]:
    """The pages that have any, by their paths."""
    found = {page.relative_to(ROOT).as_posix(): blocks(page.relative_to(ROOT).as_posix()) for page in pages()}
    return {page: each for page, each in found.items() if each}


class Checkout:
    """A copy of this checkout with the virtual environment that runs the tests, and a home of its own."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="home-", dir="/tmp"))  # short: the path of a socket has a limit
        self.folder = self.home / "pythonricing"
        self.port = free_port()
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            source, target = ROOT / name, self.folder / name
            if source.is_file() and not source.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        (self.folder / ".venv").mkdir()
        for each in Path(sys.prefix).iterdir():
            if each.name not in ("serve", "dev"):
                (self.folder / ".venv" / each.name).symlink_to(each)
        for stamp in ("serve", "dev"):  # nothing is installed
            (self.folder / ".venv" / stamp).touch()
        self.environment = environment({}) | {"HOME": str(self.home), "PYTHONPATH": str(self.folder)}
        for name in [name for name in self.environment if name.startswith(("XDG_", "PYTEST_", "MAKE"))]:
            del self.environment[name]

    def typed(self, line: str) -> str:
        """The line for this checkout's port."""
        line = line.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}").replace("--port 8080", f"--port {self.port}")
        return line.replace("make run", f"make run ARGS='--port {self.port}'")

    def run(self, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a line to its end."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.typed(line)],
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def ask(self, line: str, **variables: str) -> str:
        """What a line prints, which must end well."""
        done = self.run(line, **variables)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def does(self, line: str, **variables: str) -> None:
        """Run a line, and see that it does what the comment behind it shows."""
        command, *comment = COMMENT.split(line, maxsplit=1)
        said = self.ask(command, **variables)
        shown = "".join(comment)
        if command.startswith("curl "):
            head, _, body = said.replace("\r\n", "\n").partition("\n\n")
            status, _, answer = shown.partition(" ")
            assert head.split()[1] == status, line
            assert not answer or json.loads(body) == json.loads(answer), line
        elif command.startswith(".venv/bin/pythonricing "):
            assert said.strip() == shown, line
        else:
            assert " ".join(shown.split()) in " ".join(said.split()), line

    @contextmanager
    def running(self, line: str, **variables: str) -> Iterator[Path]:
        """Run a line that serves, in a process group as a terminal's, until the end; yields where its output is."""
        output = self.home / "output"
        with output.open("wb") as written:
            process = subprocess.Popen(
                ["bash", "-c", self.typed(line)],
                cwd=self.folder,
                env=self.environment | variables,
                stdout=written,
                stderr=written,
                start_new_session=True,
                preexec_fn=default_signals,
            )
        try:
            wait_until(lambda: process.poll() is not None or self.ready(), line)
            assert process.poll() is None, output.read_text()
            yield output
        finally:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
            process.wait(PATIENCE)

    def ready(self) -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
        return False

    def close(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
