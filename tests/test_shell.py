"""Every shell line of README and docs is run as it stands by a test, or checked as far as this machine lets it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tomllib
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import wait_until
from pythonricing.settings import Settings
from pythonricing.stores import create_store
from tests.docs_check import ROOT, calls, wrong
from tests.serve.terminals import Terminal
from tests.shell import COMMENT, Checkout, blocks, every

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer

HERE = "tests/test_shell.py::"
TYPED = f"{HERE}test_what_takes_minutes_can_be_typed"
#: Which test runs each block of each page.
RUN_BY = {
    "README.md": [f"{HERE}test_the_first_minutes_are_as_the_pages_show_them"] * 3,
    "CONTRIBUTING.md": [f"{HERE}test_the_targets_for_contributors_do_what_they_say"],
    "docs/api.md": [f"{HERE}test_the_requests_of_the_interface_are_answered_as_shown"] * 4,
    "docs/clients.md": ["tests/web/test_clients.py::test_a_client_in_python_works"],
    "docs/containers.md": [f"{HERE}test_what_needs_containers_or_a_cluster_can_be_typed"] * 4,
    "docs/examples.md": [f"{HERE}test_an_operator_makes_counters_with_rules"] * 2,
    "docs/kubernetes.md": [f"{HERE}test_what_needs_containers_or_a_cluster_can_be_typed"],
    "docs/library.md": [TYPED],
    "docs/load-lab.md": [TYPED, f"{HERE}test_the_open_model_asks_any_server", TYPED],
    "docs/observing.md": [
        f"{HERE}test_the_count_advances_in_jq_at_a_terminal",
        f"{HERE}test_the_first_minutes_are_as_the_pages_show_them",
    ],
    "docs/operations.md": [
        f"{HERE}test_the_first_minutes_are_as_the_pages_show_them",
        "tests/faults/test_operations.py::test_counters_move_to_another_store",
    ],
    "docs/sales.md": [f"{HERE}test_the_requests_of_a_sale_are_answered_as_shown"] * 6,
    "docs/settings.md": [
        f"{HERE}test_the_first_minutes_are_as_the_pages_show_them",
        f"{HERE}test_the_servers_own_commands_serve",
    ],
    "docs/stores-postgresql.md": [
        f"{HERE}test_a_store_of_somebodys_own_is_asked_for",
        f"{HERE}test_an_administrator_installs_the_schema",
        TYPED,
    ],
    "docs/stores-redis.md": [f"{HERE}test_the_stores_of_several_machines_are_understood"],
}

#: Programs that need more than this machine may have, with their commands and the other words.
CALL = re.compile(r"(podman|kubectl) ((?:-n \S+ )?[a-z]+(?: kube| restart| secret generic)?)([^|&;]*)")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq")


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    made = Checkout()
    yield made
    made.close()


def test_every_block_is_run_by_a_test() -> None:
    assert {page: len(found) for page, found in every().items()} == {page: len(by) for page, by in RUN_BY.items()}
    for path, _, test in {name.partition("::") for names in RUN_BY.values() for name in names}:
        assert f"def {test}(" in (ROOT / path).read_text()


@needs_curl
def test_the_first_minutes_are_as_the_pages_show_them(checkout: Checkout) -> None:
    (run, test), (load, *commands), requests = blocks("README.md")
    assert test.split("  ")[0] == "make test"
    with checkout.running(run):
        # The token that it made, before a counter has this name.
        (put,) = blocks("docs/settings.md")[0]
        checkout.does(put)
        token = (checkout.home / ".local/state/pythonricing/admin-token").read_text().strip()
        (change,) = blocks("docs/operations.md")[0]
        assert '"limit":500' in checkout.ask(change, PYTHONRICING_ADMIN_TOKEN=token)
        if shutil.which("ab"):
            checkout.does(load)
        else:
            asyncio.run(hammer(checkout.port, 10, [1] * 200, "/"))
        for line in [*commands, *requests]:
            checkout.does(line)
        (watch,) = blocks("docs/observing.md")[1]
        assert "default 3/100" in checkout.ask(f"({watch} || true) | head -n 1")
    assert not checkout.ready()
    assert "100 of 100" not in checkout.ask(".venv/bin/pythonricing status")


@needs_curl
def test_the_requests_of_the_interface_are_answered_as_shown(checkout: Checkout, empty_valkey: RedisServer) -> None:
    served = ".venv/bin/pythonricing serve --port 8080 --workers 1"
    with checkout.running(served, PYTHONRICING_STORE=empty_valkey.url, PYTHONRICING_ADMIN_TOKEN="s3cret"):
        for line in (line for block in blocks("docs/api.md") for line in block):
            checkout.does(line)


@needs_curl
@needs_jq
def test_the_requests_of_a_sale_are_answered_as_shown(checkout: Checkout, empty_valkey: RedisServer) -> None:
    served = ".venv/bin/pythonricing serve --port 8080 --workers 1"
    known = {"PYTHONRICING_STORE": empty_valkey.url}
    with checkout.running(served, PYTHONRICING_ADMIN_TOKEN="s3cret", **known):
        for line in (line for block in blocks("docs/sales.md") for line in block):
            if line.startswith("hold="):
                known["hold"] = checkout.ask(f'{line}; echo "$hold"').strip()
            else:
                checkout.does(line, **known)


@needs_jq
def test_an_operator_makes_counters_with_rules(checkout: Checkout, empty_valkey: RedisServer) -> None:
    for line in (line for block in blocks("docs/examples.md") for line in block):
        checkout.does(line, PYTHONRICING_STORE=empty_valkey.url)


@needs_jq
def test_the_count_advances_in_jq_at_a_terminal(checkout: Checkout) -> None:
    (line,) = blocks("docs/observing.md")[0]
    # In a group of its own, to which Ctrl-C goes as a whole.
    command = ["setsid", "bash", "-c", f"cd {checkout.folder} && {checkout.typed(line)}"]
    with Terminal(command, checkout.environment) as terminal:
        wait_until(checkout.ready, "the service")
        asyncio.run(hammer(checkout.port, 1, [1] * 3, "/"))
        # Of two workers, in any order.
        wait_until(lambda: set(re.findall(r"^\d+$", terminal.plain, re.MULTILINE)) == {"1", "2", "3"}, "the count")
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.wait()


def test_a_store_of_somebodys_own_is_asked_for(checkout: Checkout) -> None:
    install, serve = blocks("docs/stores-postgresql.md")[0]
    (extra,) = re.findall(r"pip install -e '\.\[(\w+)\]'$", install)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    # There is no such machine: one line says so, without the password.
    done = checkout.run(serve, PYTHONRICING_STORE_TIMEOUT="0.5")
    assert done.returncode == 2
    said = done.stderr
    assert said.startswith(
        "pythonricing: store postgresql://***@db.example.com/tickets?sslmode=verify-full can't be used"
    )
    assert said.count("\n") == 1


def test_an_administrator_installs_the_schema(checkout: Checkout, empty_postgres: PostgresServer) -> None:
    (line,) = blocks("docs/stores-postgresql.md")[1]
    empty_postgres.sql("DROP DATABASE IF EXISTS tickets", "SELECT")
    empty_postgres.sql("CREATE DATABASE tickets", "SELECT")
    path = f"{empty_postgres.programs}:{os.environ['PATH']}"
    known = {"PATH": path, "PGHOST": "127.0.0.1", "PGPORT": str(empty_postgres.port), "PGUSER": "postgres"}
    checkout.ask(line, **known)
    checkout.ask(line, **known)  # again, it changes nothing
    store = f"postgresql://postgres@127.0.0.1:{empty_postgres.port}/tickets"
    assert checkout.ask(".venv/bin/pythonricing list", PYTHONRICING_STORE=store) == "there are no counters yet\n"


def test_the_stores_of_several_machines_are_understood(checkout: Checkout) -> None:
    *stores, replicas = blocks("docs/stores-redis.md")[0]
    for line in stores:
        told = checkout.ask(f"{line}\n{replicas}\nenv")
        environ = dict(each.partition("=")[::2] for each in told.splitlines())
        settings = Settings.from_environ(environ)
        assert settings.store_replicas == 1
        create_store(settings.store, settings.store_timeout, settings.store_replicas, settings.on_loss)


@pytest.mark.parametrize(
    ("page", "block"), [(page, at) for page, by in RUN_BY.items() for at, name in enumerate(by) if name == TYPED]
)
def test_what_takes_minutes_can_be_typed(page: str, block: int) -> None:
    """Programs, options and their values, that is: `make compare ARGS=…` as what the Makefile makes of it."""
    asked = [call for line in blocks(page)[block] for call in calls(COMMENT.split(line)[0])]
    assert asked
    assert [line for program, words in asked for line in wrong(program, words)] == []


def test_what_can_not_be_typed_is_found() -> None:
    for line, says in (
        ("make compare ARGS='--contender library+granian --milk'", "--milk"),
        ("make compare ARGS='--contender library+milk'", "library+milk"),
        (".venv/bin/python -m loadtests compare --slices none", "'none' is not a valid integer"),
        ("granian --workers none x:y", "'none' is not a valid integer"),
    ):
        ((program, words),) = calls(line)
        (found,) = wrong(program, words)
        assert says in found


@pytest.mark.slow
def test_the_targets_for_contributors_do_what_they_say(checkout: Checkout) -> None:
    """Those that take minutes as make would run them."""
    for line in blocks("CONTRIBUTING.md")[0]:
        command = COMMENT.split(line)[0]
        if command in ("make test", "make test-slow"):
            planned = checkout.ask(f"{command} --dry-run")
            for program in re.findall(r"^(\.venv/bin/\S+)", planned, re.MULTILINE):
                assert os.access(checkout.folder / program, os.X_OK)
            assert ".venv/bin/pytest -m" in planned
        else:
            checkout.ask(command)


@pytest.mark.slow
def test_the_open_model_asks_any_server(checkout: Checkout, empty_valkey: RedisServer) -> None:
    (line,) = blocks("docs/load-lab.md")[0]
    served = ".venv/bin/pythonricing serve --port 8080 --workers 1"
    with checkout.running(served, PYTHONRICING_STORE=empty_valkey.url, PYTHONRICING_LIMIT="1000000"):
        checkout.ask(line)
    assert (checkout.folder / "run.hgrm").stat().st_size > 0


@pytest.mark.slow
def test_the_servers_own_commands_serve(checkout: Checkout, empty_valkey: RedisServer) -> None:
    lines = blocks("docs/settings.md")[1]
    assert len(lines) == 2
    for line in lines:
        with checkout.running(COMMENT.split(line)[0], PYTHONRICING_STORE=empty_valkey.url):
            assert checkout.ask(f"curl -s http://127.0.0.1:{checkout.port}/").startswith('{"request_count":')
        wait_until(lambda: not checkout.ready(), "the server's end")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/containers.md", "docs/kubernetes.md"])
def test_what_needs_containers_or_a_cluster_can_be_typed(page: str, checkout: Checkout) -> None:
    """The programs know the words and options, and the files are there; what they do, tests/containers/ runs."""
    for line in (line for block in blocks(page) for line in block):
        command = COMMENT.split(line)[0]
        for path in re.findall(r"(?<= )(?:playfile\.yaml|deploy/\S+)", command):
            assert (ROOT / path).exists()
            if "apply -k" in command and shutil.which("kubectl"):
                assert "kind: Deployment" in checkout.ask(f"kubectl kustomize {path}")
        if command.startswith("make "):
            assert "podman" in checkout.ask(f"{command} --dry-run")
        if "create secret" in command and shutil.which("kubectl"):
            assert "token: " in checkout.ask(f"{command} --dry-run=client -o yaml")
        for program, known, words in CALL.findall(command):
            if not shutil.which(program):
                pytest.skip(f"there is no {program}")
            # It reads all its options before it says what they are.
            checkout.ask(f"{program} {known} --help {words}", token="")
