"""What people read of a history that broke a promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.scene import simulate
from tests.simulation.shrink import shrink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.scene import Scene


def trace(scene: Scene, name: str | None = None) -> Iterator[str]:
    """The lines of a history, or those that are about one counter, or about all."""
    for time, about, text in scene.history.trace:
        if name is None or about in (name, ""):
            yield f"{time:14.6f} {about:8} {text}"


def explain(seed: int) -> Iterator[str]:
    """Why the history of `seed` fails: with as few faults as possible, up to its first objection."""
    scene = simulate(seed)
    if not scene.history.objections:
        yield f"seed {seed}: nothing to object to"
        return
    rule = scene.history.objections[0].rule
    faults = shrink(seed, rule, scene.faults)
    scene = simulate(seed, faults)
    objection = next(objection for objection in scene.history.objections if objection.rule == rule)
    yield f"seed {seed}: {objection}"
    yield f"{len(faults)} of {len(scene.plan.faults)} faults are enough:"
    yield from (f"    {fault}" for fault in faults)
    yield f"the history of {objection.name or 'all counters'}:"
    for line in trace(scene, objection.name or None):
        yield line
        if f"OBJECTION {rule}" in line:
            break
