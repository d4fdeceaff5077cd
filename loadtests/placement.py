"""Where generator, server and store may run: a factor of what is measured, as far as the cores allow."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Placement:
    """The cores of each part; none: wherever the scheduler puts it."""

    name: str
    explains: str
    generator: tuple[int, ...] = ()
    server: tuple[int, ...] = ()
    store: tuple[int, ...] = ()

    def prefix(self) -> list[str]:
        """What goes before the generator's command."""
        return ["taskset", "-c", listed(self.generator)] if self.generator else []


def listed(cores: Iterable[int]) -> str:
    """As taskset takes and prints them."""
    return ",".join(map(str, cores))


def pin(pid: int, cores: tuple[int, ...]) -> None:
    """As `taskset --all-tasks --pid`, for the process's children too. On machines that can't, nothing."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for process in tree(pid):
        for task in Path(f"/proc/{process}/task").glob("*"):
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(task.name), cores or CPUS)


def affinity(pid: int) -> str:
    """The cores that a process, its threads and its children may use, as the kernel says."""
    if not hasattr(os, "sched_getaffinity"):
        return ""
    cores: set[int] = set()
    for process in tree(pid):
        for task in Path(f"/proc/{process}/task").glob("*"):
            with contextlib.suppress(OSError):
                cores |= os.sched_getaffinity(int(task.name))
    return listed(sorted(cores))


def tree(pid: int) -> list[int]:
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def placements(cpus: list[int]) -> dict[str, Placement]:
    """The ways that these cores allow; `free` always."""
    found = [Placement("free", "nothing is pinned")]
    if len(cpus) > 1 and hasattr(os, "sched_setaffinity") and shutil.which("taskset"):
        first, rest = (cpus[0],), tuple(cpus[1:])
        found += [
            Placement("apart", "the generator on one core, server and store on the others", first, rest, rest),
            Placement("alone", "generator and store on one core, the server on the others", first, rest, first),
        ]
    if len(cpus) > 2 and len(found) > 1:
        found.append(
            Placement("each", "generator, store and server on cores of their own", first, tuple(cpus[2:]), (cpus[1],))
        )
    return {each.name: each for each in found}


PLACEMENTS = placements(CPUS)
