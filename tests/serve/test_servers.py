"""Servers are started the same way everywhere, and silent connections keep nobody from being served."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from granian.cli import cli as granian_cli
from uvicorn.main import main as uvicorn_cli

from loadtests.contenders import Contender
from loadtests.rig.clients import Client, hammer
from loadtests.rig.service import ROOT, Service
from loadtests.rig.waiting import PATIENCE
from pythonricing.serve import servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer

CLIS = {"granian": granian_cli, "uvicorn": uvicorn_cli}
#: Of a request that is complete with an empty line.
HEAD = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
#: What a place may choose for itself.
FREE = ("host", "port", "workers", "log_config")


def options(words: list[str]) -> dict[str, Any]:
    """What a command line means to its server."""
    program = Path(words[0]).name
    # The image's log configuration lies elsewhere.
    here = [word.replace("/etc/pythonricing/granian-log.json", str(servers.LOG_CONFIG)) for word in words[1:]]
    found = CLIS[program].make_context(program, here).params
    return {name: value for name, value in found.items() if name not in FREE}


def image_command() -> list[str]:
    text = (ROOT / "Containerfile").read_text()
    return list(json.loads(text[text.index("CMD [") + 4 :].replace("\\\n", "")))


def deployment_command() -> list[str]:
    deployment = yaml.safe_load((ROOT / "deploy" / "base" / "deployment.yaml").read_text())
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["command"])


@pytest.mark.parametrize(
    ("server", "place"),
    [
        ("granian", image_command),
        ("granian", deployment_command),
        ("granian", lambda: Service(Path("/"), None, command="granian").command),
        ("uvicorn", lambda: Service(Path("/"), None, command="uvicorn").command),
        ("granian", lambda: Contender.parse("granian+redis").command(1)),
        ("uvicorn", lambda: Contender.parse("uvicorn+redis").command(1)),
    ],
    ids=["image", "deployment", "rig-granian", "rig-uvicorn", "lab-granian", "lab-uvicorn"],
)
def test_every_place_starts_a_server_in_the_same_way(server: str, place: Callable[[], list[str]]) -> None:
    said = [server, *servers.command(server, servers.APP, host="0.0.0.0", port=1, workers=1)]
    assert options(place()) == options(said)


def test_both_servers_get_the_same_backlog_and_time_to_stop() -> None:
    granian, uvicorn = servers.GRANIAN, servers.UVICORN
    assert granian["backlog"] == uvicorn["backlog"]
    assert granian["workers-kill-timeout"] == uvicorn["timeout-graceful-shutdown"]


def test_a_worker_may_open_what_its_connections_need() -> None:
    code = """
import resource
from pythonricing.serve import servers
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
servers.allow_connections()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), most)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    soft, hard, most = map(int, done.stdout.split())
    assert hard == most
    assert soft == most or soft > servers.CONNECTIONS


@pytest.mark.parametrize("command", ["granian", "serve", "serve-uvicorn"])
def test_workers_may_open_what_their_connections_need_whatever_the_servers_soft_limit(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        running = service(empty_valkey.url, "/readyz", command=command, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connected = {record["process"]["id"] for record in running.log() if record["message"].endswith(" connected")}
    assert len(connected) == 2
    for pid in connected:
        allowed, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert allowed == hard or allowed > servers.CONNECTIONS


@pytest.mark.parametrize("command", ["granian", "serve", "serve-uvicorn", "uvicorn"])
def test_bodies_that_never_come_keep_no_worker_from_stopping(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", command=command, workers=1, admin_token="s3cret")
    requests = [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        b"PUT /counters/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\nContent-Length: 100\r\n\r\n{",
    ]

    async def run() -> list[bytes]:
        streams = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(4)]
        for number, (_, writer) in enumerate(streams):
            writer.write(requests[number % len(requests)])
        # Whoever is answered after them was received after them.
        assert (await hammer(running.port, 10, [1] * 50, "/")).statuses() == {200: 50}
        started = time.monotonic()
        status = await asyncio.to_thread(running.terminate)
        assert status == (-signal.SIGTERM if command == "uvicorn" else 0)  # as uvicorn with one worker always ends
        assert time.monotonic() - started < servers.KILL_SECONDS + 2
        answers = await asyncio.gather(*(reader.read() for reader, _ in streams))
        for _, writer in streams:
            writer.close()
        return answers

    # A 408 would mean that they were waited for in full, and no answer that a worker had to be killed.
    assert {answer[:12] for answer in asyncio.run(run())} == {b"HTTP/1.1 503"}


@pytest.mark.parametrize("command", ["granian", "serve", "serve-uvicorn"])
def test_idle_connections_are_served_and_keep_nobody_out(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", command=command, workers=1, limit=1_000_000)

    async def run() -> None:
        idle = [Client(running.port) for _ in range(2_000)]
        for start in range(0, len(idle), 100):
            answers = await asyncio.gather(*(each.request() for each in idle[start : start + 100]))
            assert {status for status, _ in answers} == {200}
        history = await hammer(running.port, 10, [1] * 500, "/")
        assert history.statuses() == {200: 500}
        for each in idle:
            each.close()

    asyncio.run(run())


@pytest.mark.parametrize("command", ["granian", "serve", "serve-uvicorn"])
def test_connections_that_say_nothing_are_closed_and_keep_nobody_out(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", command=command, workers=1, limit=1_000_000)
    # Nothing, half a head, one request, a request and half a head.
    said = [b"", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + HEAD]

    async def run() -> None:
        silent = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(1_200)]
        for number, (_, writer) in enumerate(silent):
            writer.write(said[number % len(said)])
        history = await hammer(running.port, 10, [1] * 500, "/")
        assert history.statuses() == {200: 500}
        async with asyncio.timeout(PATIENCE):
            for reader, writer in silent:
                await reader.read()
                writer.close()

    asyncio.run(run())
    assert running.get("/livez")[0] == 200


@pytest.mark.parametrize("command", ["granian", "serve", "serve-uvicorn"])
def test_a_head_of_megabytes_is_not_read(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, "/readyz", command=command, workers=1)

    async def run() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        try:
            writer.write(HEAD)
            for _ in range(1_000):
                writer.write(b"X-A: " + b"a" * 10_000 + b"\r\n")
                await writer.drain()
            writer.write(b"\r\n")
            return await reader.read()
        except OSError:  # it has been closed before all was sent
            return b""
        finally:
            writer.close()

    assert asyncio.run(run())[:12] in (b"", b"HTTP/1.1 431")
    assert running.get("/", "POST", X_A="a" * 30_000)[0] == 200


@pytest.mark.parametrize("command", ["serve", "serve-uvicorn"])
def test_requests_sent_ahead_without_end_take_neither_memory_nor_numbers(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    requests, clients = 12_000, 20
    running = service(empty_valkey.url, "/readyz", command=command, workers=1, admin_token="let-me")
    running.get("/counters/a", "PUT", b'{"limit": 1000000}', authorization="Bearer let-me")

    def resident() -> int:
        assert running.process is not None
        process = psutil.Process(running.process.pid)
        return max(int(each.memory_info().rss) for each in [process, *process.children(recursive=True)])

    async def run() -> int:
        writers = []
        for _ in range(clients):  # none of them reads
            _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1)
            writer.write(b"POST /counters/a HTTP/1.1\r\nHost: a\r\n\r\n" * requests)
            writers.append(writer)
        assert (await hammer(running.port, 1, [1] * 20, "/")).statuses() == {200: 20}
        grown = resident()
        for writer in writers:
            writer.close()
        return grown

    before = resident()
    assert asyncio.run(asyncio.wait_for(run(), PATIENCE)) < before + 50_000_000
    count = running.get("/counters/a")[1]["count"]
    if command == "serve-uvicorn":  # closed before they were begun
        assert count < clients * requests
