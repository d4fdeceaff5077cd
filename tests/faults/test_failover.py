"""Masters are replaced, slots move and networks split while clients claim."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pythonricing.stores.sentinel import Sentinels
from tests.support import SentinelServers, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_a_master_that_comes_back_during_its_failover_is_not_taken_for_the_master(tmp_path: Path) -> None:
    """The Sentinel that leads the failover goes on describing the old master until every replica has a new one."""
    servers = SentinelServers(tmp_path, replicas=2, failover_timeout=6)
    try:
        servers.start()
        old, stubborn = servers.master, servers.servers[2]
        # It follows nobody new: the failover lasts until its timeout.
        stubborn.run("CONFIG", "SET", "replica-priority", 0)
        stubborn.run("CONFIG", "SET", "masterauth", "wrong")
        old.kill()
        new = servers.wait_for_failover(old)
        old.start()

        def described() -> set[tuple[int, bool]]:
            states = [sentinel.ask("SENTINEL", "MASTER", "service") for sentinel in servers.sentinels]
            masters = [dict(zip(state[::2], state[1::2], strict=True)) for state in states]
            return {(int(master["port"]), "_down" not in master["flags"]) for master in masters}

        wait_until(lambda: described() == {(old.port, True), (new.port, True)}, "the leader to see the old master")

        async def discover(ports: list[int]) -> int:
            sentinels = Sentinels([("127.0.0.1", port) for port in ports])
            try:
                return (await sentinels.discover_master("service"))[1]
            finally:
                await sentinels.aclose()

        ports = [sentinel.port for sentinel in servers.sentinels]
        found = [asyncio.run(discover(ports[first:] + ports[:first])) for first in range(len(ports))]
        assert (old.port, True) in described(), "the failover was over too soon"
        assert found == [new.port] * len(ports)
    finally:
        servers.stop()
