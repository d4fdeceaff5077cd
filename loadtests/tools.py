"""The load generators: how each is called, and what its output means."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loadtests.revisions import ROOT
from loadtests.rig.processes import spawn, stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

#: Seconds that a tool gets beside four times what it is told to take.
PATIENCE = 60.0


class ToolError(Exception):
    """A load generator that failed or said nothing that can be read. Its text is one line."""


@dataclass(frozen=True)
class Load:
    """What to send: connections, and by tool a number of requests or of seconds; claims on `counters` counters."""

    connections: int
    requests: int
    seconds: int
    counters: int = 1


@dataclass
class Outcome:
    """What a generator counted: capacity. What a closed loop says of latency is no answer to what a user waits.

    `failures` are requests without an answer. Refusals (429) count as `non_2xx`: ab and wrk do not tell the one from
    another. `generator_cores` is what the generator used of `generator_limit` cores
    while it asked, `generator_seconds` all the CPU that it used.
    """

    requests: int
    seconds: float
    failures: int
    non_2xx: int
    generator_cores: float = 0.0
    generator_seconds: float = 0.0
    generator_limit: float = 1.0
    command: str = ""

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def generator_share(self) -> float:
        """Of the cores that the generator can use."""
        return self.generator_cores / self.generator_limit


class Tool(Protocol):
    """A load generator. `threads` is how many cores it can use at most."""

    name: str
    package: str
    explains: str

    def available(self) -> bool: ...

    def threads(self, load: Load) -> int: ...

    def command(self, url: str, load: Load, folder: Path) -> list[str]: ...

    def parse(self, output: str, folder: Path) -> Outcome: ...


class ApacheBench:
    """`ab`, which opens a connection for each request: what it keeps (`-k`) it keeps in HTTP/1.0, unlike anybody."""

    name = "ab"
    package = "apache2-utils"

    explains = "ab, a fixed number of requests, a new connection for each; one thread"

    def available(self) -> bool:
        return shutil.which("ab") is not None

    def threads(self, load: Load) -> int:
        return 1

    def command(self, url: str, load: Load, folder: Path) -> list[str]:
        numbers = ["-n", str(load.requests), "-c", str(load.connections)]
        return ["ab", *numbers, "-q", f"{url}/"]

    def parse(self, output: str, folder: Path) -> Outcome:
        complete = _number(r"Complete requests:\s+(\d+)", output, "ab")
        # Answers of another length are no failures: request_count grows.
        failed = re.search(r"\(Connect: (\d+), Receive: (\d+), Length: \d+, Exceptions: (\d+)\)", output)
        non_2xx = re.search(r"Non-2xx responses:\s+(\d+)", output)
        return Outcome(
            requests=int(complete),
            seconds=_number(r"Time taken for tests:\s+([\d.]+) seconds", output, "ab"),
            failures=sum(map(int, failed.groups())) if failed else 0,
            non_2xx=int(non_2xx[1]) if non_2xx else 0,
        )


class Wrk:
    """`wrk`, kept connections for a number of seconds."""

    name = "wrk"
    package = "wrk"
    explains = "wrk, kept connections for a fixed time: what it measures is capacity"

    def available(self) -> bool:
        return shutil.which("wrk") is not None

    def threads(self, load: Load) -> int:
        return max(1, min(load.connections, (os.cpu_count() or 1) // 2))

    def command(self, url: str, load: Load, folder: Path) -> list[str]:
        numbers = [f"-t{self.threads(load)}", f"-c{load.connections}", f"-d{load.seconds}s"]
        script = ["-s", str(Path(__file__).with_name("wrk.lua"))]
        return ["wrk", *numbers, "--timeout", "10s", *script, f"{url}/", "--", str(load.counters)]

    def parse(self, output: str, folder: Path) -> Outcome:
        line = re.search(r"^wrk-json (.*)$", output, re.MULTILINE)
        if line is None:
            raise ToolError("wrk did not report what it measured")
        return Outcome(**json.loads(line[1]))


class H2load:
    """`h2load`, HTTP/2 on kept connections for a number of seconds."""

    name = "h2load"
    package = "nghttp2-client"
    explains = "h2load, HTTP/2 with 16 streams on each of the kept connections"

    def available(self) -> bool:
        return shutil.which("h2load") is not None

    def threads(self, load: Load) -> int:
        return 1

    def command(self, url: str, load: Load, folder: Path) -> list[str]:
        return ["h2load", f"-D{load.seconds}", f"-c{load.connections}", "-m16", f"{url}/"]

    def parse(self, output: str, folder: Path) -> Outcome:
        if not re.search(r"Application protocol: h2c?$", output, re.MULTILINE):
            raise ToolError("the server speaks no HTTP/2")
        ok, *others = (int(_number(rf"status codes:.*?(\d+) {kind}xx", output, "h2load")) for kind in "2345")
        done = int(_number(r"requests:.*?(\d+) done", output, "h2load"))
        return Outcome(
            requests=done,
            seconds=_number(r"finished in ([\d.]+)s", output, "h2load"),
            failures=done - ok - sum(others),
            non_2xx=sum(others),
        )


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Wrk(),
        ApacheBench(),
        H2load(),
    )
}


def run(tool: Tool, url: str, load: Load, *, prefix: Sequence[str] = ()) -> Outcome:
    """Measure once; `prefix` goes before the tool's command.

    Raises ToolError when the tool fails, says nothing, or takes far too long.
    """
    with tempfile.TemporaryDirectory(prefix="loadtests-") as name:
        folder = Path(name)
        command = [*prefix, *tool.command(url, load, folder)]
        with (folder / "output").open("wb") as output:
            process = spawn(command, output=output.fileno(), cwd=ROOT)
        try:
            status, cpu, seconds = _wait(process, PATIENCE + 4 * load.seconds)
        finally:
            stop(process, patience=2)
        text = (folder / "output").read_text(errors="replace")
        if status != 0 or not text.strip():
            said = text.strip().splitlines()[-1][:200] if text.strip() else "it printed nothing"
            raise ToolError(f"{tool.name} ended with status {status}: {said}")
        outcome = tool.parse(text, folder)
        if outcome.requests <= 0 or outcome.seconds <= 0:
            raise ToolError(f"{tool.name} finished no request")
        outcome.generator_cores = cpu / seconds
        outcome.generator_seconds = cpu
        outcome.generator_limit = float(tool.threads(load))
        outcome.command = " ".join([Path(command[0]).name, *command[1:]]).replace(f"{folder}{os.sep}", "")
        outcome.command = outcome.command.replace(f"{ROOT}{os.sep}", "")
        return outcome


def _wait(process: subprocess.Popen[bytes], patience: float) -> tuple[int, float, float]:
    """The exit status, the seconds of CPU that the process used, and the seconds that it took. Raises ToolError."""
    started = time.monotonic()
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - started
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime, seconds
        if seconds > patience:
            raise ToolError(f"{Path(str(process.args[0])).name} did not end within {patience:.0f} s")  # type: ignore[index]
        time.sleep(0.01)


def _number(pattern: str, output: str, tool: str) -> float:
    if (found := re.search(pattern, output)) is None:
        raise ToolError(f"{tool} did not report {pattern.split(':')[0]!r}")
    return float(found[1])
