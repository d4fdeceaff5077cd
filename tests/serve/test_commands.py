"""The commands about counters, on every kind of store that they can ask."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.service import environment
from loadtests.rig.waiting import PATIENCE
from pythonricing.counting.model import Word
from pythonricing.stores import create_store
from tests.serve.commands import PROGRAM, run
from tests.serve.terminals import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

SEATS = {"name": "seats", "count": 0, "limit": 500, "remaining": 500, "halted": False, "leased": 0}


@pytest.fixture(params=["empty_valkey", "empty_postgres"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).url)


def test_a_counter_is_made_listed_changed_started_over_and_deleted(store: str, tmp_path: Path) -> None:
    def ask(*words: str) -> tuple[int, str, str]:
        return run(*words, "--store", store, home=tmp_path)

    assert ask("list") == (0, "there are no counters yet\n", "")
    assert ask("list", "--json") == (0, "[]\n", "")
    assert ask("set", "seats", "--limit", "500") == (0, "seats: 0 of 500\n", "")
    assert ask("status", "seats") == (0, "seats: 0 of 500\n", "")
    assert ask("set", "sold-out", "--limit", "0") == (0, "sold-out: 0 of 0, halted\n", "")
    assert ask("list")[1].splitlines() == [
        "COUNTER   COUNT  LIMIT  LEFT",
        "seats         0    500   500",
        "sold-out      0      0     0  halted",
    ]
    status, output, _ = ask("list", "--json")
    assert (status, json.loads(output)[0]) == (0, SEATS)
    assert json.loads(ask("status", "seats", "--json")[1]) == SEATS
    changed = {**SEATS, "limit": 7, "remaining": 7, "most": 2}
    assert json.loads(ask("set", "seats", "--limit", "7", "--most", "2", "--json")[1]) == changed
    assert json.loads(ask("reset", "seats", "--json")[1]) == changed
    assert ask("delete", "seats") == (0, "seats: deleted\n", "")
    assert json.loads(ask("delete", "sold-out", "--json")[1]) == {"name": "sold-out", "deleted": True}
    assert ask("list", "--json")[1] == "[]\n"


def test_what_a_sale_needs_is_set_and_listed(store: str, tmp_path: Path) -> None:
    def ask(*words: str) -> tuple[int, str, str]:
        return run(*words, "--store", store, home=tmp_path)

    rules = ("--each", "4", "--most", "2", "--every", "day", "--zone", "Europe/Berlin")
    status, said, _ = ask("set", "quota", "--limit", "9", *rules)
    renews = r"2 at once, renews every day in Europe/Berlin, next \d{4}-\d\d-\d\d 2[23]:00:00 UTC"
    assert status == 0
    assert re.fullmatch(rf"quota: 0 of 9, 4 for each, {renews}\n", said)
    assert re.search(rf"^quota  +0  +9  +9  4 for each, {renews}$", ask("list")[1], re.MULTILINE)
    assert re.fullmatch(rf"quota: 0 of 9, 4 for each, {renews}\n", ask("status", "quota")[1])
    for command, lines in (("list",), 4), (("status", "quota"), 3):
        with Terminal([PROGRAM, *command], environment({"store": store}), 40) as terminal:
            assert terminal.wait() == 0
            assert max(map(len, terminal.plain.splitlines())) <= 40
            assert len(terminal.plain.splitlines()) == lines
    listed = json.loads(ask("list", "--json")[1])[0]
    assert (listed["each"], listed["every"], listed["zone"]) == (4, "day", "Europe/Berlin")
    for words, says in (
        (("--each", "10"), "each is above the limit"),
        (("--every", "0s"), 'every is "day", "week", "month"'),
        (("--every", "day", "--zone", "Mars"), "there is no time zone 'Mars'"),
        (("--zone", "Europe/Berlin"), "a zone is for counters that renew every day"),
    ):
        status, output, errors = ask("set", "quota", "--limit", "9", *words)
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert says in errors
    assert json.loads(ask("list", "--json")[1]) == [listed]
    assert ask("set", "quota", "--limit", "9") == (0, "quota: 0 of 9\n", "")


def test_an_unknown_counter_is_named_with_those_that_are_near_it(store: str, tmp_path: Path) -> None:
    for name in ("seats", "seats-b", "coupons"):
        assert run("set", name, "--limit", "1", home=tmp_path, store=store)[0] == 0
    for command in ("status", "reset", "delete"):
        status, output, errors = run(command, "seat", home=tmp_path, store=store)
        assert (status, output) == (2, "")
        assert errors == "pythonricing: there is no counter seat; near it: seats, seats-b\n"
    assert run("status", "x", home=tmp_path, store=store)[2] == "pythonricing: there is no counter x\n"


def test_default_is_at_0_of_its_limit_before_its_first_claim(store: str, tmp_path: Path) -> None:
    assert run("status", home=tmp_path, store=store) == (0, "default: 0 of 100\n", "")
    assert run("status", home=tmp_path, store=store, limit=7) == (0, "default: 0 of 7\n", "")
    assert run("list", "--json", home=tmp_path, store=store)[1] == "[]\n"  # reading it has not made it
    assert run("reset", home=tmp_path, store=store, limit=7) == (0, "default: 0 of 7\n", "")


def test_what_set_says_reaches_a_service_that_runs(
    empty_valkey: RedisServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    running = service(empty_valkey.url, "/readyz", workers=1, halt_cache=0)
    assert running.get("/")[1] == {"request_count": 1, "limit": 100}
    assert (
        run("set", "default", "--limit", "1", home=tmp_path, store=empty_valkey.url)[1] == "default: 1 of 1, halted\n"
    )
    assert running.get("/")[0] == 429
    assert run("delete", "default", home=tmp_path, store=empty_valkey.url)[1] == "default: deleted\n"
    assert running.get("/")[1] == {"request_count": 1, "limit": 1}


def test_a_name_or_a_limit_that_can_not_be_is_said(empty_valkey: RedisServer, tmp_path: Path) -> None:
    status, _, errors = run("set", "a b", "--limit", "1", home=tmp_path, store=empty_valkey.url)
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith("pythonricing: 'a b' is no name: 1 to 64 of the characters")
    for limit in ("abc", "-1", str(2**53)):
        status, _, errors = run("set", "a", "--limit", limit, home=tmp_path, store=empty_valkey.url)
        assert status == 2
        assert "'--limit'" in errors
        assert limit in errors


def test_a_lost_counter_is_listed_as_lost(empty_valkey: RedisServer, tmp_path: Path) -> None:
    run("set", "seats", "--limit", "5", home=tmp_path, store=empty_valkey.url)
    empty_valkey.command("HSET", "pythonricing:{seats}", "lost", "1")
    assert "LOST" in run("list", home=tmp_path, store=empty_valkey.url)[1]
    status, _, errors = run("status", "seats", home=tmp_path, store=empty_valkey.url)
    assert (status, "`pythonricing reset` starts it over" in errors) == (2, True)
    assert run("reset", "seats", home=tmp_path, store=empty_valkey.url)[:2] == (0, "seats: 0 of 5\n")


def test_more_counters_than_a_page_has_are_listed(empty_valkey: RedisServer, tmp_path: Path) -> None:
    names = [f"counter-{number:04}" for number in range(1203)]

    async def fill() -> None:
        store = create_store(empty_valkey.url, 10.0)
        await store.open()
        await store.ready()
        await asyncio.gather(*(store.put(name, Word(uuid.uuid4().hex, 2**60), 1) for name in names))
        async with asyncio.timeout(PATIENCE):
            while len(await store.browse(len(names))) < len(names):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        await store.close()

    asyncio.run(fill())
    listed = json.loads(run("list", "--json", home=tmp_path, store=empty_valkey.url)[1])
    assert [counter["name"] for counter in listed] == names


def test_on_a_terminal_what_needs_attention_is_in_colour(empty_valkey: RedisServer, tmp_path: Path) -> None:
    run("set", "seats", "--limit", "0", home=tmp_path, store=empty_valkey.url)
    variables = environment({"store": empty_valkey.url})
    with Terminal([PROGRAM, "list"], variables) as terminal:
        assert terminal.wait() == 0
        assert "\x1b[33m\x1b[1mhalted" in terminal.text
        assert terminal.plain.splitlines()[0].split() == ["COUNTER", "COUNT", "LIMIT", "LEFT"]


@pytest.mark.parametrize(("columns", "lines"), [(200, 3), (80, 4), (40, 5)])
def test_on_a_narrow_terminal_names_and_numbers_stay_whole(
    columns: int, lines: int, empty_valkey: RedisServer, tmp_path: Path
) -> None:
    largest = "n" * 64
    run("set", "seats", "--limit", "0", home=tmp_path, store=empty_valkey.url)
    run("set", largest, "--limit", str(2**53 - 1), home=tmp_path, store=empty_valkey.url)
    with Terminal([PROGRAM, "list"], environment({"store": empty_valkey.url}), columns) as terminal:
        assert terminal.wait() == 0
        listed = terminal.plain.splitlines()
    assert len(listed) == lines
    if lines > 3:
        numbers = ["  0 of 9,007,199,254,740,991,", "  9,007,199,254,740,991 left"]
        if lines == 4:
            numbers = [f"{numbers[0]}{numbers[1][1:]}"]
        assert listed == [largest, *numbers, "seats", "  0 of 0, 0 left, halted"]


def test_a_terminal_of_one_column_has_a_word_a_line(empty_valkey: RedisServer, tmp_path: Path) -> None:
    run("set", "seats", "--limit", "5", home=tmp_path, store=empty_valkey.url)
    for words in (["list"], ["status", "seats"]):
        with Terminal([PROGRAM, *words], environment({"store": empty_valkey.url}), 1) as terminal:
            assert terminal.wait() == 0
            assert [line.strip() for line in terminal.plain.splitlines()][-3:] == (
                ["5,", "5", "left"] if words == ["list"] else ["0", "of", "5"]
            )


def test_no_colour_where_it_is_not_wanted(empty_valkey: RedisServer, tmp_path: Path) -> None:
    run("set", "seats", "--limit", "0", home=tmp_path, store=empty_valkey.url)
    variables = environment({"store": empty_valkey.url})
    for words in (["list"], ["doctor"], ["watch", "http://127.0.0.1:1"]):
        with Terminal(["env", "NO_COLOR=1", PROGRAM, *words], variables) as terminal:
            terminal.wait()
            assert "\x1b" not in terminal.text


def test_python_m_pythonricing_is_the_command() -> None:
    for option in ("-h", "--help"):
        words = [sys.executable, "-m", "pythonricing", option]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert done.stdout.startswith("Usage: pythonricing [OPTIONS] COMMAND")
        for command in ("serve", "status", "list", "set", "reset", "delete", "doctor", "watch", "schema"):
            assert f"\n  {command} " in done.stdout
