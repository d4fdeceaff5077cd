from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from loadtests import tools
from loadtests.contenders import UNLIMITED, Contender
from loadtests.running import Running
from loadtests.tools import TOOLS, Load, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AB = """\
This is ApacheBench, Version 2.3 <$Revision: 1 $>
Server Software:        granian
Concurrency Level:      10
Time taken for tests:   0.705 seconds
Complete requests:      10000
Failed requests:        9910
   (Connect: 1, Receive: 2, Length: 9900, Exceptions: 7)
Non-2xx responses:      9900
Requests per second:    14174.85 [#/sec] (mean)
Time per request:       0.705 [ms] (mean)
Time per request:       0.071 [ms] (mean, across all concurrent requests)
"""

WRK = """\
Running 1s test @ http://127.0.0.1:1/
Requests/sec:  20340.07

wrk-json {"requests": 22372, "seconds": 1.099898, "non_2xx": 3, "failures": 1}
"""

H2LOAD = """\
Application protocol: h2c
finished in 2.00s, 21945.22 req/s, 1.57MB/s
requests: 2020 total, 2020 started, 2010 done, 2000 succeeded, 10 failed, 3 errored, 0 timeout
status codes: 2000 2xx, 0 3xx, 7 4xx, 0 5xx
"""


def test_ab_is_called_as_the_headline_calls_it(tmp_path: Path) -> None:
    command = TOOLS["ab"].command("http://127.0.0.1:1", Load(10, 10000, 3), tmp_path)
    assert command[:5] == ["ab", "-n", "10000", "-c", "10"]


def test_what_ab_prints_is_read(tmp_path: Path) -> None:
    outcome = TOOLS["ab"].parse(AB, tmp_path)
    assert (outcome.requests, outcome.seconds) == (10000, 0.705)
    # Answers of different lengths are none of a failure, and the status of a refusal is counted apart.
    assert (outcome.failures, outcome.non_2xx) == (10, 9900)
    assert outcome.requests_per_second == pytest.approx(14184.4, rel=1e-3)


def test_what_wrk_prints_is_read(tmp_path: Path) -> None:
    outcome = TOOLS["wrk"].parse(WRK, tmp_path)
    assert (outcome.requests, outcome.failures, outcome.non_2xx) == (22372, 1, 3)


def test_what_h2load_prints_is_read(tmp_path: Path) -> None:
    outcome = TOOLS["h2load"].parse(H2LOAD, tmp_path)
    assert (outcome.requests, outcome.seconds, outcome.failures, outcome.non_2xx) == (2010, 2.0, 3, 7)
    with pytest.raises(ToolError, match="speaks no HTTP/2"):
        TOOLS["h2load"].parse(H2LOAD.replace("h2c", "http/1.1"), tmp_path)


@pytest.mark.parametrize(
    ("name", "output"),
    [("ab", "Complete requests: 5\n"), ("wrk", "unable to connect"), ("h2load", "Application protocol: h2c\n")],
)
def test_output_that_lacks_figures_is_an_error(name: str, output: Any, tmp_path: Path) -> None:
    with pytest.raises(ToolError):
        TOOLS[name].parse(output, tmp_path)


def test_how_much_of_its_cores_a_generator_used_is_told(tmp_path: Path) -> None:
    outcome = TOOLS["wrk"].parse(WRK, tmp_path)
    outcome.generator_limit = 2.0
    outcome.generator_cores = 1.7
    assert outcome.generator_share == pytest.approx(0.85)


@pytest.fixture
def fake_ab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An `ab` of the test's own."""

    def write(script: str) -> None:
        path = tmp_path / "bin" / "ab"
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 0", "status 0: it printed nothing"),
        ("echo 'apr_socket_recv: Connection refused (111)'; exit 111", "status 111: apr_socket_recv"),
        ("echo 'Complete requests: 0'", "did not report 'Time taken for tests'"),
        ("kill -9 $$", "status -9"),
    ],
)
def test_a_tool_that_fails_is_named_with_what_it_said(fake_ab: Callable[[str], None], script: str, says: str) -> None:
    fake_ab(script)
    with pytest.raises(ToolError, match=says):
        tools.run(TOOLS["ab"], "http://127.0.0.1:1", Load(1, 10, 1))


def test_a_tool_that_hangs_is_ended(fake_ab: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ab("sleep 60")
    monkeypatch.setattr(tools, "PATIENCE", 0.2)
    with pytest.raises(ToolError, match="did not end"):
        tools.run(TOOLS["ab"], "http://127.0.0.1:1", Load(1, 10, 0))


@pytest.mark.parametrize("name", TOOLS)
def test_the_real_tool_measures_and_is_understood(name: str) -> None:
    if not TOOLS[name].available():
        pytest.skip(f"{name} is not installed: it is in {TOOLS[name].package}")
    contender = Contender.parse("constant+granian[--http=auto]")
    with Running(contender, UNLIMITED) as running:
        outcome = tools.run(TOOLS[name], running.url, Load(4, 200, 1))
    assert outcome.requests >= 1
    assert (outcome.failures, outcome.non_2xx) == (0, 0)
    assert outcome.generator_seconds > 0
    assert outcome.command.split()[0] == name
