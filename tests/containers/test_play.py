"""playfile.yaml, played: exact through the published port, over containers that come, die, and are taken down."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.clients import Client, History, hammer
from loadtests.rig.waiting import wait_until
from pythonricing.counting.lease import BUSY
from tests.containers.podman import IMAGE, POD, inspect, log, logged, numbers, podman, succeeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.containers.conftest import Played

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APP, STORE = f"{POD}-app", f"{POD}-store"


def request(played: Played, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        client = Client(played.port)
        try:
            return await client.request(path, method, body, **headers)
        finally:
            client.close()

    return asyncio.run(run())


def put_counter(played: Played, name: str, limit: int) -> None:
    status, body = request(
        played,
        f"/counters/{name}",
        "PUT",
        json.dumps({"limit": limit}).encode(),
        Authorization=f"Bearer {played.token}",
        Content_Type="application/json",
    )
    assert status in (200, 201), body


def connections() -> int:
    """Connections of the service's workers to the store."""
    listed = podman("exec", STORE, "valkey-cli", "CLIENT", "LIST").splitlines()
    return sum(" name=pythonricing-" in line for line in listed)


def until(done: Callable[[], bool]) -> Iterator[int]:
    """Claims of one number each, until something has happened."""
    while not done():
        yield 1


@pytest.fixture
def second(played: Played) -> Iterator[str]:
    """One more container of the service in the pod: it shares port 8080 with the first."""
    name = f"{POD}-app-2"
    podman(
        *("run", "--detach", "--pod", POD, "--name", name, "--read-only", "--cap-drop", "ALL"),
        *("--env", f"PYTHONRICING_ADMIN_TOKEN={played.token}", IMAGE),
    )
    wait_until(lambda: connections() == 32, "both containers' workers to be connected")
    yield name
    podman("rm", "--force", "--time", "60", name)
    wait_until(lambda: connections() == 16, "its workers to be gone")


def test_ten_thousand_requests_admit_exactly_a_hundred(played: Played) -> None:
    if shutil.which("ab"):
        url = f"http://127.0.0.1:{played.port}/"
        ran = subprocess.run(
            ["ab", "-q", "-l", "-n", "10000", "-c", "10", url], capture_output=True, text=True, check=True
        )
        said = dict(line.split(":", 1) for line in ran.stdout.splitlines() if ":" in line)
        assert said["Complete requests"].split() == ["10000"]
        assert said["Non-2xx responses"].split() == ["9900"]
    else:
        history = asyncio.run(hammer(played.port, 10, [1] * 10_000, "/"))
        assert history.owned() == list(range(1, 101))
    assert logged("default", 100, APP) == list(range(1, 101))
    assert request(played, "/counters/default")[1]["count"] == 100


def test_sixteen_workers_are_exact_for_many_clients_and_hold_one_connection_each(played: Played) -> None:
    put_counter(played, "many", 5_000)
    history = asyncio.run(hammer(played.port, 128, [1] * 20_000, "/counters/many"))
    assert history.statuses() == {200: 5_000, 429: 15_000}
    assert history.owned() == list(range(1, 5_001))
    assert logged("many", 5_000, APP) == list(range(1, 5_001))
    assert connections() == 16


@pytest.mark.parametrize("container", [APP, STORE])
def test_podman_finds_it_healthy(played: Played, container: str) -> None:
    assert succeeds("healthcheck", "run", container)


def test_what_is_played_has_no_privileges(played: Played) -> None:
    for container in (APP, STORE):
        status = podman("exec", container, "sh", "-c", "while read -r line; do echo $line; done </proc/1/status")
        values = dict(line.split(": ", 1) for line in status.splitlines() if ": " in line)
        assert "0" not in values["Uid"].split()
        assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 0
        assert values["NoNewPrivs"] == "1"
        assert inspect(container)["HostConfig"]["ReadonlyRootfs"] is True


def test_two_containers_on_one_store_are_exact(played: Played, second: str) -> None:
    put_counter(played, "two", 5_000)
    history = asyncio.run(hammer(played.port, 128, [1] * 20_000, "/counters/two"))
    assert history.statuses() == {200: 5_000, 429: 15_000}
    assert history.owned() == list(range(1, 5_001))
    assert logged("two", 5_000, APP, second) == list(range(1, 5_001))
    assert numbers(log(APP), "two")
    assert numbers(log(second), "two")


def test_a_container_killed_under_load_loses_at_most_its_claims_in_flight(played: Played, second: str) -> None:
    path = "/counters/killed"
    put_counter(played, "killed", 2**53 - 1)
    killed = False

    async def load_and_kill() -> History:
        load = asyncio.create_task(hammer(played.port, 64, until(lambda: killed), path))
        reader = Client(played.port)
        while (await reader.request(path, "GET"))[1]["count"] < 1_000:
            pass
        reader.close()
        killing = await asyncio.create_subprocess_exec("podman", "kill", second, stdout=asyncio.subprocess.DEVNULL)
        assert await killing.wait() == 0
        nonlocal killed
        killed = True
        return await load

    before = asyncio.run(load_and_kill())
    unanswered = before.statuses().get(0, 0)
    assert before.statuses() == {200: len(before.owned()), 0: unanswered}
    assert unanswered > 0, "nothing was in flight at the kill"

    # What is left is admitted to the last number, and what the workers who are left had taken ahead.
    limit = request(played, path)[1]["count"] + 1_000
    put_counter(played, "killed", limit)
    after = asyncio.run(hammer(played.port, 64, [1] * 3_000, path))
    admitted = after.statuses()[200]
    assert after.statuses() == {200: admitted, 429: 3_000 - admitted}
    assert admitted >= 1_000
    assert request(played, path)[1]["count"] == limit
    owned = before.owned() + after.owned()
    assert len(set(owned)) == len(owned)
    assert set(owned) <= set(range(1, limit + 1))
    # A worker's lease at most, of 16.
    assert limit - len(owned) <= unanswered + 16 * BUSY * 0.01


def test_the_count_survives_down_and_up(played: Played) -> None:
    put_counter(played, "survivor", 1_000)
    before = asyncio.run(hammer(played.port, 16, [1] * 400, "/counters/survivor")).owned()
    # The store stops with its workers, who can't give back to it any more.
    wait_until(lambda: request(played, "/counters/survivor")[1]["count"] == 400, "leases to come back")
    played.down()
    assert not succeeds("pod", "inspect", POD)
    assert not podman("ps", "--all", "--quiet", "--filter", f"name={POD}")
    played.up()
    assert request(played, "/counters/survivor")[1]["count"] == 400
    after = asyncio.run(hammer(played.port, 16, [1] * 1_000, "/counters/survivor")).owned()
    assert sorted(before + after) == list(range(1, 1_001))
