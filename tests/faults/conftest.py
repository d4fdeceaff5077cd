"""Fixtures of the fault suite: each test is run against every store that can be harmed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.load import TOKEN
from loadtests.rig.proxy import Proxy
from loadtests.rig.victims import VICTIMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadtests.rig.service import Service
    from loadtests.rig.victims import Victim


@pytest.fixture(params=VICTIMS)
def idle_victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    """A store that hasn't been started."""
    store = VICTIMS[request.param](tmp_path / "victim")
    yield store
    store.stop()


@pytest.fixture
def victim(idle_victim: Victim) -> Victim:
    """A store of the test's own, to do harm to."""
    idle_victim.start()
    return idle_victim


@pytest.fixture
def proxy(victim: Victim) -> Iterator[Proxy]:
    """The way to `victim` through a network that can fail."""
    between = Proxy(victim.port)
    yield between
    between.stop()


@pytest.fixture
def lease() -> float:
    """Seconds of its demand that a worker takes ahead; tests for which it matters are run without leases too."""
    return 0.01


@pytest.fixture
def service(service: Callable[..., Service], lease: float) -> Callable[..., Service]:
    """Start services whose counters a test can create."""
    return partial(service, admin_token=TOKEN, lease=lease)
