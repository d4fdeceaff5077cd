"""The fewest faults with which a history still fails: delta debugging (Zeller, ESEC 1999)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.scene import simulate

if TYPE_CHECKING:
    from tests.simulation.plan import Fault


def shrink(seed: int, rule: str, faults: list[Fault]) -> list[Fault]:
    """Leave out faults for as long as the history of `seed` still breaks `rule`."""
    parts = 2
    while len(faults) >= 1:
        size = max(1, len(faults) // parts)
        for start in range(0, len(faults), size):
            rest = faults[:start] + faults[start + size :]
            if breaks(seed, rule, rest):
                faults, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(faults), parts * 2)
    return faults


def breaks(seed: int, rule: str, faults: list[Fault]) -> bool:
    return any(objection.rule == rule for objection in simulate(seed, faults).history.objections)
