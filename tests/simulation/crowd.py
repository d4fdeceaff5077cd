"""Many histories over all cores."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from multiprocessing import active_children
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.scene import simulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Histories that a process runs before it reports.
PORTION = 20


#: Histories within which a mutant must be noticed.
PATIENCE = 2000


class Outcome(NamedTuple):
    """What a portion of histories came to. `objections` are by seed: the rules and the first one's text."""

    histories: int
    claims: int
    operations: int
    faults: Counter[str]
    objections: dict[int, tuple[list[str], str]]


def run_portion(seeds: range) -> Outcome:
    """Run histories one after the other."""
    claims, operations, faults = 0, 0, Counter[str]()
    objections: dict[int, tuple[list[str], str]] = {}
    for seed in seeds:
        with quiet_collector():
            scene = simulate(seed)
            claims += sum(operation.kind == "claim" for operation in scene.history.operations)
            operations += len(scene.history.operations)
            faults.update(scene.chaos.happened)
            if scene.history.objections:
                rules = list(dict.fromkeys(objection.rule for objection in scene.history.objections))
                objections[seed] = rules, str(scene.history.objections[0])
            del scene
    gc.collect()  # what a history left that was still held by the next one
    return Outcome(len(seeds), claims, operations, faults, objections)


def find(mutant: str, seeds: Iterable[int]) -> tuple[int, str] | None:
    """The first of `seeds` whose history is objected to because of a mutant, and by which rule."""
    for seed in seeds:
        broken = rules_of(seed, mutant)
        if broken and (news := broken - rules_of(seed)):
            return seed, min(news)
    return None


def rules_of(seed: int, mutant: str | None = None) -> set[str]:
    """The rules that a history breaks."""
    with quiet_collector(), mutated(mutant):
        return {objection.rule for objection in simulate(seed).history.objections}


@contextmanager
def quiet_collector() -> Iterator[None]:
    """A history's cycles are collected when it is over, all at once, and without a look at what was there before."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.unfreeze()


def run(first: int, jobs: int) -> Iterator[Outcome]:
    """Run seeds from `first` on, for as long as outcomes are asked for."""
    portions = (range(start, start + PORTION) for start in count(first, PORTION))
    with crew(jobs) as pool:
        running = {pool.submit(run_portion, portion) for portion in islice(portions, jobs * 2)}
        while True:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                running.add(pool.submit(run_portion, next(portions)))
                yield future.result()


def run_mutants(jobs: int) -> Iterator[tuple[str, int | None, str]]:
    """After how many histories each mutant is noticed, and by which rule; None for one that isn't."""
    with crew(jobs) as pool:
        running = {pool.submit(find, name, range(PATIENCE)): name for name in MUTANTS}
        for future in as_completed(running):
            found = future.result()
            yield running[future], None if found is None else found[0] + 1, "" if found is None else found[1]


@contextmanager
def crew(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when nobody wants their results any more, and leave Ctrl-C to this one."""
    with ProcessPoolExecutor(jobs, initializer=partial(signal.signal, signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
