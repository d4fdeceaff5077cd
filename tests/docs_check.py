"""Hold the pages to what exists: `python -m tests.docs_check` prints a line for each thing that doesn't.

Links and their anchors; make targets; commands and their options; settings; paths, and tests by their name; lengths.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from pythonricing.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
#: Lines that a page has at most.
LENGTHS = {"README.md": 150, "docs/architecture.md": 150}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Programs whose options are known, and where their click command is.
PROGRAMS = {
    "pythonricing": "pythonricing.serve.cli:main",
    "loadtests": "loadtests.__main__:main",
    "loadtests.failovers": "loadtests.failovers:main",
    "granian": "granian.cli:cli",
    "uvicorn": "uvicorn.main:main",
}
#: Folders whose paths are followed.
PLACES = ("tests", "loadtests", "deploy", "docs", "pythonricing", "requirements")
A_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(PLACES)})/[\w./-]*(?:::\w+)?")


def pages() -> list[Path]:
    return [*PAGES, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> Iterator[str]:
    """The text of each fenced block, but of `text`: what a screen has shown is no command."""
    return (found[2] for found in FENCE.finditer(text) if found[1] != "text")


def lines(text: str) -> Iterator[str]:
    """The lines of every fenced block, continued ones joined, and every code span: where commands are named."""
    for block in blocks(text):
        yield from block.replace("\\\n", " ").splitlines()
    for span in re.finditer(r"`([^`]+)`", FENCE.sub("", text)):
        yield span[1].replace("\n", " ")


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path, text: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists():
            yield f"there is nothing at {target}"
        elif anchor and anchor not in anchors(text if linked == page else linked.read_text()):
            yield f"there is no heading for {target}"


def targets(page: Path, text: str) -> Iterator[str]:
    known = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines(text):
        for target in re.findall(r"(?:^|[\s;&(])make ([a-z][\w-]*)", line):
            if target not in known:
                yield f"there is no target for `make {target}`"


def commands(page: Path, text: str) -> Iterator[str]:
    for line in lines(text):
        for program, words in calls(line):
            yield from _unknown(program, words)


def calls(line: str) -> Iterator[tuple[str, list[str]]]:
    """The known programs that a line calls, each with its words; `make` as what a target makes of its ARGS."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose in backquotes
        return
    call: list[str] = []
    for word in [*words, ";"]:
        if word not in (";", "|", "&&"):
            call.append(word)
            continue
        while call and re.match(r"[A-Z_]+=", call[0]):
            call.pop(0)
        if call:
            name, *rest = _made(call)
            if name.endswith("python") and rest[:1] == ["-m"] and len(rest) > 1:
                name, *rest = rest[1:]
            name = name.removeprefix(".venv/bin/")
            if name in PROGRAMS:
                yield name, rest
        call = []


def _made(call: list[str]) -> list[str]:
    """The words of the last command of a make target that takes ARGS, or else the same words."""
    if call[0] == "make" and len(call) > 1 and call[-1].startswith("ARGS="):
        recipe = re.search(rf"^{call[1]}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        words = recipe[1].splitlines()[-1].strip("\t@").replace("$(BIN)", ".venv/bin").split() if recipe else []
        if words[-1:] == ["$(ARGS)"]:
            return [*words[:-1], *shlex.split(call[-1].removeprefix("ARGS="))]
    return call


def _unknown(program: str, words: list[str]) -> Iterator[str]:
    """The subcommands and options among the words that the program doesn't know."""
    module, _, attribute = PROGRAMS[program].partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    words = [word.strip("[]") for word in words]
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            yield f"`{program}` has no command {words[0]}"
            return
        command = command.commands[words[0]]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            yield f"`{program}` has no option {option}"


def wrong(program: str, words: list[str]) -> Iterator[str]:
    """What the program would say of these words, values too, before it does anything."""
    module, _, attribute = PROGRAMS[program].partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    if isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(program, list(words))
    except click.ClickException as error:
        yield error.format_message()


def modules(page: Path, text: str) -> Iterator[str]:
    for line in lines(text):
        for module in re.findall(r"-m ((?:loadtests|tests|pythonricing)[\w.]*)", line):
            if find_spec(module) is None:
                yield f"there is no module {module}"


def settings(page: Path, text: str) -> Iterator[str]:
    known = {PREFIX + field.upper() for field in Settings.__struct_fields__}
    for variable in sorted(set(re.findall(rf"{PREFIX}[A-Z_]+", text)) - known):
        yield f"there is no setting {variable}"


def paths(page: Path, text: str) -> Iterator[str]:
    for line in lines(text):
        for named in A_PATH.findall(line):
            path, _, test = named.partition("::")
            file = ROOT / path.rstrip(".")
            if not file.exists():
                yield f"there is no {path}"
            elif test and not re.search(rf"^(async )?def {test}\(", file.read_text(), re.MULTILINE):
                yield f"there is no {named}"


def lengths(page: Path, text: str) -> Iterator[str]:
    allowed = LENGTHS.get(page.relative_to(ROOT).as_posix())
    if allowed is not None and len(text.splitlines()) > allowed:
        yield f"it has {len(text.splitlines())} lines; {allowed} are allowed"


CHECKS: list[Callable[[Path, str], Iterator[str]]] = [links, targets, commands, modules, settings, paths, lengths]


def problems(page: Path, text: str | None = None) -> list[str]:
    """What a page says that isn't so."""
    text = page.read_text() if text is None else text
    checks = [links] if page.name == "CHANGELOG.md" else CHECKS  # it tells of what is gone, too
    return [problem for check in checks for problem in check(page, text)]


def main() -> None:
    found = [f"{page.relative_to(ROOT)}: {problem}" for page in pages() for problem in problems(page)]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
