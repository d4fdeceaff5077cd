"""The pages say what is so: what they name exists, what they promise is tested, their commands do what they show."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pythonricing import __version__
from tests.docs_check import ROOT, pages, problems
from tests.simulation.mutants import MUTANTS
from tests.simulation.seeds import NOTICED_AT

PROMISES = re.findall(r"^## (\d+\. .*?)$(.*?)(?=^## |\Z)", (ROOT / "docs/promises.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert problems(page) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gone](gone.md)", "there is nothing at gone.md"),
        ("![gone](docs/gone.png)", "there is nothing at docs/gone.png"),
        ("# Here\n\n[there](#there)", "there is no heading for #there"),
        ("[there](docs/api.md#there)", "there is no heading for docs/api.md#there"),
        ("`make coffee`", "there is no target for `make coffee`"),
        ("```sh\nPORT=1 make coffee  # hot\n```", "there is no target for `make coffee`"),
        ("`pythonricing brew`", "`pythonricing` has no command brew"),
        ("```sh\n.venv/bin/pythonricing serve \\\n    --milk\n```", "`pythonricing` has no option --milk"),
        ("`pythonricing serve [--server a|b] [--milk M]`", "`pythonricing` has no option --milk"),
        ("`.venv/bin/python -m loadtests brew`", "`loadtests` has no command brew"),
        ("`.venv/bin/python -m loadtests compare --milk`", "`loadtests` has no option --milk"),
        ("```\ngranian --milk=1 app | uvicorn app\n```", "`granian` has no option --milk"),
        ("`.venv/bin/python -m loadtests.brew`", "there is no module loadtests.brew"),
        ("PYTHONRICING_MILK", "there is no setting PYTHONRICING_MILK"),
        ("`tests/test_milk.py`", "there is no tests/test_milk.py"),
        ("`tests/test_docs.py::test_milk`", "there is no tests/test_docs.py::test_milk"),
        ("\n" * 151, "it has 151 lines; 150 are allowed"),
    ],
)
def test_what_does_not_exist_is_found(text: str, says: str) -> None:
    assert problems(ROOT / "README.md", text) == [says]


@pytest.mark.parametrize(("title", "body"), PROMISES, ids=[title for title, _ in PROMISES])
def test_a_promise_says_what_it_does_not_and_has_tests(title: str, body: str) -> None:
    assert re.search(r"^\*\*Says\*\*: \S", body, re.M)
    assert re.search(r"^\*\*Doesn't say\*\*: \S", body, re.M)
    # That they exist, the check of the page has seen.
    assert re.findall(r"^- `tests/[\w/]+\.py::test_\w+`$", body, re.M)
    # What the simulation says of it: which rules hold it and which mutants break it; or why it can't.
    rules, mutants = named("Rules", body), named("Mutants", body)
    assert bool(rules) == bool(mutants) != bool(re.search(r"^Simulation: \S", body, re.M))


def named(what: str, text: str) -> set[str]:
    """The names in double quotes of the paragraphs that begin with a word."""
    return {
        re.sub(r"\s+", " ", name)
        for found in re.findall(rf"^{what}: (.*?)(?=\n\n|\Z)", text, re.M | re.S)
        for name in re.findall(r'"([^"]+)"', found)
    }


def test_promises_name_every_rule_and_every_mutant_of_the_simulation() -> None:
    text = "".join(body for _, body in PROMISES)
    assert named("Mutants", text) == set(MUTANTS) == set(NOTICED_AT)
    calls = (
        node
        for module in (ROOT / "tests/simulation").glob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "object"
    )
    assert named("Rules", text) == {ast.literal_eval(call.args[0]) for call in calls}


def test_the_readme_has_every_promise() -> None:
    assert [title.partition(".")[0] for title, _ in PROMISES] == [str(i + 1) for i in range(len(PROMISES))]
    front = (ROOT / "README.md").read_text().partition("## What it promises")[2].partition("\n## ")[0]
    assert len(re.findall(r"^- ", front, re.M)) == len(PROMISES)


def test_the_figures_of_the_readme_stand_in_the_pages() -> None:
    rows = re.findall(r"^\|[^|]+\|([^|]*\d[^|]*)\|", (ROOT / "README.md").read_text().split("## Figures")[1], re.M)
    told = "".join(page.read_text() for page in pages() if page.parent.name == "docs")
    figures = set(re.findall(r"\d[\d,]*\.?\d+", "".join(rows)))
    assert figures
    assert figures <= set(re.findall(r"\d[\d,]*\.?\d+", told))


def test_the_version_is_said_once() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("pythonricing")), "--version"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == f"pythonricing, version {__version__}\n"
