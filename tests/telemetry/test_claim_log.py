"""What happens to claims, in the log."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


def test_refusals_are_added_up(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=1, limit=1, wait_for="/readyz")
    for _ in range(50):
        running.get("/")
    assert running.terminate() == 0
    refusals = [record for record in running.log() if "refused" in record["extra"]]
    assert sum(record["extra"]["refused"] for record in refusals) == 49
    assert {record["level"]["name"] for record in refusals} == {"WARNING"}
    times = [record["time"]["timestamp"] for record in refusals[:-1]]  # the last may come at the end of the process
    assert all(later - earlier > 0.9 for earlier, later in pairwise(times))


@pytest.mark.parametrize("quiet", [{"request_log": "off"}, {"log_level": "WARNING"}])
def test_the_request_log_can_be_turned_off(
    quiet: dict[str, str], empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, workers=1, wait_for="/readyz", **quiet)
    running.get("/")
    running.terminate()
    assert not [record for record in running.log() if "request_count" in record["extra"]]
