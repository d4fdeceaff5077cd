"""When requests are meant to start."""

from __future__ import annotations

import random
from typing import Literal

Arrivals = Literal["poisson", "constant"]


def schedule(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> list[int]:
    """Nanoseconds from the start on, in order; the same for the same seed."""
    if arrivals == "constant":
        return [int(number / rate * 1e9) for number in range(int(rate * seconds))]
    draw, at, found = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(int(at * 1e9))
    return found
