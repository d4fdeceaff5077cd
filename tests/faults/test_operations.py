"""What the page about operations says works as it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loadtests.rig.load import ADMIN
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service


def put(running: Service, name: str, **rules: int) -> None:
    assert running.get(f"/counters/{name}", "PUT", json.dumps(rules).encode(), **ADMIN)[0] == 201


def test_data_that_comes_back_ends_a_loss(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, "/readyz", workers=1, halt_cache=0)
    put(running, "seats", limit=500)
    key = "pythonricing:{seats}"
    assert running.get("/counters/seats?n=40", "POST")[0] == 200
    empty_valkey.command("COPY", key, "backup")
    empty_valkey.command("DEL", key)

    def asked(status: int) -> Any:
        return running.get("/counters/seats", "POST")[0] == status

    wait_until(lambda: asked(503), "the loss to be noticed")
    assert "seats" in running.get("/readyz")[1]["lost"]
    empty_valkey.command("COPY", "backup", key, "REPLACE")
    wait_until(lambda: asked(200), "the data to be found")
    assert running.get("/counters/seats")[1]["count"] > 40
    wait_until(lambda: not running.get("/readyz")[1].get("lost"), "the loss to be over")
