"""Many histories over all cores."""

from __future__ import annotations

import gc
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import count, islice
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.mutants import mutated
from tests.simulation.scene import simulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Histories that a process runs before it reports.
PORTION = 20


class Outcome(NamedTuple):
    """What a portion of histories came to. `objections` are by seed: the rules and the first one's text."""

    histories: int
    claims: int
    faults: Counter[str]
    objections: dict[int, tuple[list[str], str]]


def run_portion(seeds: range, mutant: str | None = None) -> Outcome:
    """Run histories one after the other; with a mutant, up to the first that objects."""
    claims, faults = 0, Counter[str]()
    objections: dict[int, tuple[list[str], str]] = {}
    gc.disable()  # a history's cycles are collected when it is over, all at once
    with mutated(mutant):
        for done, seed in enumerate(seeds, 1):
            scene = simulate(seed)
            claims += sum(operation.kind == "claim" for operation in scene.history.operations)
            faults.update(scene.chaos.happened)
            if scene.history.objections:
                rules = list(dict.fromkeys(objection.rule for objection in scene.history.objections))
                objections[seed] = rules, str(scene.history.objections[0])
            del scene
            gc.collect()
            if objections and mutant is not None:
                break
    gc.enable()
    return Outcome(done, claims, faults, objections)


def run(seeds: Iterable[int] | None, jobs: int, first: int = 0) -> Iterator[Outcome]:
    """Run seeds from `first` on, for as long as outcomes are asked for."""
    portions = (range(start, start + PORTION) for start in count(first, PORTION))
    with ProcessPoolExecutor(jobs) as pool:
        running = {pool.submit(run_portion, portion) for portion in islice(portions, jobs * 2)}
        try:
            while True:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    running.add(pool.submit(run_portion, next(portions)))
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
