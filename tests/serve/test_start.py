"""The first minute at a terminal: text, what to do next, a token; and what `serve` says of settings."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.service import Service, environment
from loadtests.rig.waiting import wait_until
from pythonricing.settings import Settings
from tests.serve.commands import PROGRAM, fails, run
from tests.serve.terminals import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer


@pytest.mark.parametrize("command", ["serve", "serve-uvicorn"])
def test_a_terminal_gets_text_that_ends_with_what_to_do_next_and_adds_claims_up(command: str, tmp_path: Path) -> None:
    running = Service(tmp_path, None, command=command)
    with Terminal(running.command, running.environment) as terminal:
        terminal.wait_for("Ctrl-C")
        token = tmp_path / "pythonricing" / "admin-token"
        said = terminal.plain
        # Until it was ready; what workers say later may come after it.
        assert (
            f"""
The token for PUT and DELETE is in {token}
Watch the counters:  {running.url}/watch
Claim a number:      curl {running.url}/
Stop the service:    Ctrl-C
"""
            in said
        )
        assert f"2 workers of {'granian' if command == 'serve' else 'uvicorn'} on {running.url}" in said
        assert "\x1b[32m" in terminal.text  # Loguru's colour of the time
        assert "{" not in said
        for _ in range(7):
            assert running.get("/")[0] == 200
        assert running.get("/?n=99", "POST")[0] == 429
        wait_until(lambda: admitted(terminal) == 7, "the claims to be told of")
        assert re.search(r"INFO +default 7 of 100: .*1 refused", terminal.plain)
        assert terminal.plain.count("admitted") <= 7
        assert "request_count" not in terminal.plain
        assert terminal.end() == 0
    assert "Traceback" not in terminal._read.decode()


def test_a_terminal_is_told_how_to_ask_a_unix_socket(empty_valkey: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    with Terminal([PROGRAM, "serve", "--uds", str(path)], environment({"store": empty_valkey.url})) as terminal:
        terminal.wait_for("Ctrl-C")
        curl = f"curl --unix-socket {path}"
        assert f"Watch the counters:  {curl} --no-buffer http://here/watch/events\n" in terminal.plain
        assert f"Claim a number:      {curl} http://here/\n" in terminal.plain
        assert terminal.end() == 0


def admitted(terminal: Terminal) -> int:
    return sum(map(int, re.findall(r"(\d+) admitted", terminal.plain)))


def test_one_worker_tells_of_the_claims_of_all(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, "/livez", command="serve", workers=3, log_format="text")
    wait_until(lambda: running.output.read_text().count(" connected\n") == 3, "every worker")
    for _ in range(20):
        assert running.get("/")[0] == 200
    told = r"default \d+ of 100: (\d+) admitted"
    wait_until(lambda: sum(map(int, re.findall(told, running.output.read_text()))) == 20, "the claims to be told of")
    assert running.terminate() == 0
    text = running.output.read_text()
    assert sum(map(int, re.findall(told, text))) == 20
    assert "\x1b" not in text
    assert "{" not in text


def test_the_requests_of_text_are_turned_off_as_those_of_json(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/livez", command="serve", log_format="text", request_log="off")
    wait_until(lambda: running.get("/")[0] == 200, "an admission")
    assert running.terminate() == 0
    assert "admitted" not in running.output.read_text()


def test_json_can_be_had_on_a_terminal_too(empty_valkey: RedisServer, tmp_path: Path) -> None:
    running = Service(tmp_path, empty_valkey.url, command="serve", log_format="json")
    with Terminal(running.command, running.environment) as terminal:
        terminal.wait_for("Ctrl-C")
        assert json.loads(terminal.text.splitlines()[0])["record"]["extra"]["url"] == running.url
        assert "The token" not in terminal.text
        assert terminal.end(signal.SIGTERM) == 0


def test_with_the_embedded_store_put_works_in_the_first_minute(tmp_path: Path, service: Callable[..., Service]) -> None:
    running = service(None, "/readyz", command="serve", workers=1)
    path = tmp_path / "pythonricing" / "admin-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text().strip()
    assert len(token) >= 32
    admin: dict[str, Any] = {"Authorization": f"Bearer {token}"}
    assert running.get("/counters/seats", "PUT", b'{"limit": 5}', Authorization="Bearer wrong")[0] == 401
    assert running.get("/counters/seats", "PUT", b'{"limit": 5}', **admin)[0] == 201
    assert token not in running.output.read_text()
    assert running.terminate() == 0
    # It is the same one the next time, unless another is given.
    again = service(None, "/readyz", command="serve", workers=1)
    assert again.get("/counters", **admin)[1]["counters"][-1]["name"] == "seats"
    assert again.terminate() == 0
    own = service(None, "/readyz", command="serve", workers=1, admin_token="own")
    assert own.get("/counters", **admin)[0] == 401
    assert own.terminate() == 0
    assert [each.name for each in path.parent.glob("admin-token*")] == ["admin-token"]


def test_a_store_of_the_operators_own_gets_no_token_by_itself(
    empty_valkey: RedisServer, tmp_path: Path, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", command="serve", workers=1)
    assert running.get("/counters", Authorization="Bearer ")[0] == 403
    assert not (tmp_path / "pythonricing").exists()


def test_a_token_file_that_holds_none_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "pythonricing"
    folder.mkdir()
    for content in (b"", b"two words", b"\xff"):
        (folder / "admin-token").write_bytes(content)
        line = run("serve", "--port", "0", home=tmp_path)[2]
        assert line.count("\n") == 1
        assert str(folder / "admin-token") in line


def test_serves_help_names_every_setting() -> None:
    done = subprocess.run([PROGRAM, "serve", "-h"], capture_output=True, text=True, check=True)
    for field in Settings.__struct_fields__:
        assert f"  PYTHONRICING_{field.upper()} " in done.stdout


def test_a_bad_option_is_blamed_and_no_variable(tmp_path: Path) -> None:
    line = fails(tmp_path, "serve", "--limit", "abc", limit=5)
    assert line.startswith("pythonricing: --limit: 'abc' is not a whole number from 0 to ")
    line = fails(tmp_path, "serve", "--store", "mysql://u:s3cret@db", store="redis://h")
    assert line.startswith("pythonricing: --store: 'mysql://***@db' is not a URL that starts with memory://")
    assert fails(tmp_path, "serve", store_replicas="x").endswith(
        "PYTHONRICING_STORE_REPLICAS: 'x' is not a whole number from 0 to 100"
    )
    assert "redis://h/zero: after the host only the number of a database" in fails(
        tmp_path, "serve", "--store", "redis://h/zero"
    )


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster", "postgresql"])
def test_half_an_address_of_a_store_is_one_line_without_its_password(scheme: str, tmp_path: Path) -> None:
    for command in ("serve", "list"):
        line = fails(tmp_path, command, "--store", f"{scheme}://u:s3cret@[::1")
        assert line == f"pythonricing: {scheme}://***@[::1: Invalid IPv6 URL"


def test_a_misspelt_setting_is_warned_of_with_the_nearest_name(
    empty_valkey: RedisServer, tmp_path: Path, service: Callable[..., Service]
) -> None:
    says = "PYTHONRICING_STORE_TIMEOT is no setting; PYTHONRICING_STORE_TIMEOUT is"
    for command in ("serve", "serve-uvicorn", "granian"):
        running = service(empty_valkey.url, "/readyz", command=command, store_timeot=1, service_host="10.0.0.1")
        warned = [record["message"] for record in running.log() if record["level"]["name"] == "WARNING"]
        assert warned == [says]
        running.terminate()
    status, output, errors = run("status", home=tmp_path, store=empty_valkey.url, store_timeot=1)
    assert (status, output, errors) == (0, "default: 0 of 100\n", f"pythonricing: {says}\n")


def test_a_relative_state_folder_is_none(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as home:  # short: the path of a socket has a limit
        variables = environment({}) | {"XDG_STATE_HOME": "relative", "HOME": home}
        done = subprocess.run(
            [PROGRAM, "status"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "default: 0 of 100\n", "")
        assert not (tmp_path / "relative").exists()
        assert (Path(home) / ".local" / "state" / "pythonricing" / "appendonlydir").is_dir()


def test_no_home_at_all_is_one_line(empty_valkey: RedisServer) -> None:
    # As for a user without an entry in /etc/passwd, without having to be one.
    code = """
import pathlib, sys
def home():
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = home
from pythonricing.serve.cli import main
main()
"""
    variables = {name: value for name, value in environment({}).items() if name not in ("HOME", "XDG_STATE_HOME")}
    for words, store, status in ((["serve", "--port", "0"], {}, 2), (["status"], {}, 2), (["status"], {"store": 1}, 0)):
        more = {"PYTHONRICING_STORE": empty_valkey.url} if store else {}
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=variables | more, capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert done.stderr.count("\n") == (status == 2)
        assert ("set HOME or XDG_STATE_HOME" in done.stderr) == (status == 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody without a passwd entry")
def test_somebody_without_a_passwd_entry_is_told_in_one_line() -> None:
    # Nor is the coverage measured: that user may not write it down.
    unset = ("HOME", "XDG_STATE_HOME", "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
    variables = {name: value for name, value in environment({}).items() if name not in unset}
    code = "import os; os.setgid(54321); os.setuid(54321); from pythonricing.serve.cli import main; main(['status'])"
    # Imported before the user changes, who may not be allowed to read this checkout.
    code = f"import pythonricing.serve.cli, pythonricing.stores.redis.store; {code}"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set HOME or XDG_STATE_HOME" in done.stderr


def test_a_dead_embedded_store_quotes_the_last_line_of_its_log(tmp_path: Path, service: Callable[..., Service]) -> None:
    running = service(None, "/readyz", command="serve", workers=1)
    log = tmp_path / "pythonricing" / "valkey.log"
    pid = int(re.search(r"pid=(\d+)", log.read_text())[1])  # type: ignore[index]
    os.kill(pid, signal.SIGKILL)

    def died() -> list[str]:
        return [record["message"] for record in running.log() if "embedded store died" in record["message"]]

    wait_until(lambda: bool(died()), "the death to be told")
    assert died()[0].startswith(f"the embedded store died (status -9) ({log}: {pid}:")
