"""Ten containers with a network address each, sixteen workers in each, on one store: still exact."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import free_port, wait_until
from tests.containers.podman import STORE_IMAGE, logged, podman, succeeds

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONTAINERS, WORKERS, LIMIT = 10, 16, 5_000


@pytest.fixture
def network(image: str) -> Iterator[str]:
    """A network of its own for the test, with the store in it under the name `store`."""
    name = f"pythonricing-test-{os.getpid()}"
    podman("network", "create", name)
    options = ["--save", "", "--protected-mode", "no"]
    podman("run", "--detach", "--name", f"{name}-store", "--network", name, "--network-alias", "store", STORE_IMAGE,
           "valkey-server", *options)  # fmt: skip
    yield name
    podman("rm", "--force", "--volumes", f"{name}-store")
    podman("network", "rm", "--force", name)


@pytest.fixture
def ports(image: str, network: str) -> Iterator[dict[str, int]]:
    """The published port of each container."""
    ports = {f"{network}-{index}": free_port() for index in range(CONTAINERS)}
    settings = ["--env", "PYTHONRICING_STORE=redis://store:6379/0", "--env", f"PYTHONRICING_LIMIT={LIMIT}"]
    try:
        for name, port in ports.items():
            podman(
                *("run", "--detach", "--name", name, "--network", network, "--publish", f"127.0.0.1:{port}:8080"),
                *("--read-only", "--cap-drop", "ALL", *settings, image),
            )
        for name in ports:
            wait_until(partial(succeeds, "exec", name, "probe", "8080", "/readyz"), name, 300)
        yield ports
    finally:
        podman("rm", "--force", "--time", "5", *ports, check=False)


def clients(network: str) -> list[str]:
    listed = podman("exec", f"{network}-store", "valkey-cli", "CLIENT", "LIST").splitlines()
    return [line for line in listed if " name=pythonricing-" in line]


def test_ten_containers_of_sixteen_workers_are_exact_on_a_connection_each(network: str, ports: dict[str, int]) -> None:
    wait_until(lambda: len(clients(network)) == CONTAINERS * WORKERS, "every worker to be connected", 300)

    async def load() -> list[int]:
        claims = [1] * (4 * LIMIT // CONTAINERS)
        histories = await asyncio.gather(*(hammer(port, 16, claims) for port in ports.values()))
        for history in histories:
            assert set(history.statuses()) <= {200, 429}
        return sorted(number for history in histories for number in history.owned())

    assert asyncio.run(load()) == list(range(1, LIMIT + 1))
    assert len(clients(network)) == CONTAINERS * WORKERS
    assert logged("default", LIMIT, *ports) == list(range(1, LIMIT + 1))
