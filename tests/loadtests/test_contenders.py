from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from loadtests import revisions
from loadtests.audit import CLIENTS, COUNTERS, KEYED, audit
from loadtests.contenders import Contender
from loadtests.rig import redis
from loadtests.rig.processes import Unavailable, spawn, stop
from loadtests.rig.waiting import port_is_taken, wait_until
from loadtests.running import ContenderError, Running
from loadtests.stores import Valkey
from loadtests.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "app", "server", "store"),
    [
        ("granian+redis", "service", "granian", "redis"),
        ("uvicorn+memory", "service", "uvicorn", "memory"),
        ("constant+granian", "constant", "granian", "none"),
        ("read-then-write+uvicorn", "read-then-write", "uvicorn", "redis"),
        ("one-claim+granian", "one-claim", "granian", "redis"),
        ("one-claim+granian+postgresql", "one-claim", "granian", "postgresql"),
        ("granian+redis-replica@main~2[tls PYTHONRICING_LEASE=0]", "service", "granian", "redis-replica"),
    ],
)
def test_a_contender_is_named_by_what_it_is_made_of(text: str, app: str, server: str, store: str) -> None:
    contender = Contender.parse(text)
    assert (contender.app, contender.server, contender.store) == (app, server, store)
    assert contender.name == text
    assert contender.with_workers(16).key == f"{text} x16"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "granian",
            "granian+oracle",
            "cherokee+redis",
            "constant+redis",
            "granian+redis[",
            "fastapi+granian+unix",
        ),
        *(
            "fastapi+granian@v0.1.0",
            "granian+redis@",
            "granian+http://127.0.0.1",
            "http://127.0.0.1:80/?",
            "ftp://granian",
        ),
    ],
)
def test_what_is_no_contender_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="granian"):
        Contender.parse(text)


def test_words_in_brackets_are_options_of_the_server_and_settings() -> None:
    contender = Contender.parse("granian+redis[--loop=asyncio PYTHONRICING_REQUEST_LOG=off]")
    assert "--loop=asyncio" in contender.command(1)
    assert not any("REQUEST_LOG" in word for word in contender.command(1))
    assert contender.environment(None, 5, "token")["PYTHONRICING_REQUEST_LOG"] == "off"


def test_settings_of_the_caller_do_not_reach_a_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONRICING_HALT_CACHE", "9")
    assert "PYTHONRICING_HALT_CACHE" not in Contender.parse("granian+redis").environment(None, 5, "token")


@pytest.mark.parametrize(
    "name",
    [
        "granian+redis-replica",
        "granian+redis[tls]",
        "uvicorn+unix[tls]",
        "granian+memory",
        "fastapi+uvicorn",
        "library+granian",
        "asgi-incr+granian",
        "asgi-batch+uvicorn",
        "limits+uvicorn",
        "hypercorn+redis[tls]",
        "gunicorn+redis[tls]",
        "gunicorn-asgi+redis[tls]",
        "one-claim+granian+redis-fsync",
    ],
)
def test_a_contender_counts_exactly_and_leaves_nothing_behind(name: str) -> None:
    contender = Contender.parse(name)
    with Running(contender, 20) as running:
        tree = psutil.Process(running.pid).children(recursive=True)
        found = audit(running)
        assert found.verdict == ("exact" if contender.exact else found.verdict)
        assert found.admitted == found.limit == (sum(COUNTERS.values()) if contender.has_counters else 20)
        if not contender.has_counters:
            running.reset()
            assert audit(running).admitted == 20
        assert running.usage().worker_mb > 5
        if contender.store == "redis-replica":
            assert isinstance(running.store, Valkey)
            assert "cmdstat_wait" in running.store.server.info("commandstats")
    assert not psutil.pid_exists(running.pid)
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]  # who reaps them isn't the lab's doing
    assert not port_is_taken(running.port)
    assert not running.folder.exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_revision_is_served_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(revisions.ROOT / "pythonricing", repository / "pythonricing")
    document = repository / "pythonricing" / "web" / "openapi.py"
    document.write_text(document.read_text().replace('"title": "pythonricing"', '"title": "Of that revision"'))
    author = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "One"), ("tag", "v9.8.7")):
        subprocess.run(["git", "-C", repository, *author, *words], check=True)
    shutil.rmtree(repository / "pythonricing")
    monkeypatch.setattr(revisions, "ROOT", repository)
    with Running(Contender.parse("granian+redis@v9.8.7"), 20) as running:
        with urllib.request.urlopen(f"{running.url}/openapi.json", timeout=10) as answer:
            assert json.load(answer)["info"]["title"] == "Of that revision"
        assert audit(running).verdict == "exact"
    with pytest.raises(Unavailable, match=r"there is no revision v9\.8\.8"):
        Running(Contender.parse("granian+redis@v9.8.8"), 20)


def test_reading_then_writing_oversells_and_the_audit_says_by_how_much() -> None:
    contender = Contender.parse("read-then-write+uvicorn")
    with Running(contender, 1) as running, ThreadPoolExecutor(1) as pool:
        assert isinstance(running.store, Valkey)
        store = running.store.server

        def reads() -> int:
            return int(store.info("commandstats")["cmdstat_get"].split(",")[0].removeprefix("calls="))

        # Every client's claim reads before any of them writes.
        before = reads()
        store.run("CLIENT", "PAUSE", 60_000, "WRITE")
        auditing = pool.submit(audit, running)
        wait_until(lambda: reads() == before + CLIENTS + KEYED, "every client's claim to read")
        store.run("CLIENT", "UNPAUSE")
        found = auditing.result()
    assert found.admitted == CLIENTS + KEYED
    assert found.distinct == 1
    assert f"oversold by {CLIENTS + KEYED - 1}" in found.verdict


def test_a_peer_of_the_service_is_the_service_with_batches_of_one_claim() -> None:
    contender = Contender.parse("one-claim+granian")
    with Running(contender, 20) as running:
        assert isinstance(running.store, Valkey)
        scripts = running.store.commands()
        found = audit(running)
        assert found.verdict == "exact"
        assert running.store.commands() - scripts >= found.admitted / 8


def test_workers_that_count_for_themselves_are_reset_by_starting_anew() -> None:
    contender = Contender.parse("granian+memory").with_workers(2)
    with Running(contender, 5) as running:
        assert audit(running).admitted > 5
        first = running.pid
        running.reset()
        assert running.pid != first
        assert audit(running).admitted > 5


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ContenderError, match=f"port {port} is taken"):
            Running(Contender.parse("constant+granian"), 5, port=port)


def test_a_port_shared_by_another_server_counts_as_taken() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert port_is_taken(taken.getsockname()[1])


def test_a_contender_that_ends_while_starting_says_why() -> None:
    with pytest.raises(ContenderError, match="No such option"):
        Running(Contender.parse("constant+uvicorn[--no-such-option]"), 5)


def test_a_missing_store_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "redis_programs", lambda: (_ for _ in ()).throw(Unavailable("no valkey-server: …")))
    with pytest.raises(Unavailable, match="no valkey-server"):
        Running(Contender.parse("granian+redis"), 5)


def test_a_store_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "redis_programs", lambda: ["/bin/false"])
    with pytest.raises(Unavailable, match="valkey did not start"):
        Running(Contender.parse("granian+redis"), 5)


def test_stopping_reaches_children_that_ignore_sigterm() -> None:
    script = "trap '' TERM; sh -c 'trap \"\" TERM; sleep 60' & wait; sleep 60"
    process = spawn(["sh", "-c", script], output=subprocess.DEVNULL)
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        pass
    stop(process, patience=0.2)
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_usage_counts_the_cpu_of_the_whole_tree() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    process = spawn([sys.executable, "-c", script], output=subprocess.DEVNULL)
    try:
        before, deadline = Usage.of(process.pid), time.monotonic() + 60
        while Usage.of(process.pid).cpu_since(before) < 0.25:
            assert time.monotonic() < deadline, "the child's CPU is not counted"
        now = Usage.of(process.pid)
        assert now.cpu[process.pid] < now.cpu_since(before)
        assert now.workers == now.cpu.keys() - {process.pid}
    finally:
        stop(process)
    assert Usage.of(process.pid).cpu == {}
