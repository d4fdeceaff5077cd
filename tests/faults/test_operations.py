"""What the page about operations says works as it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.load import ADMIN
from loadtests.rig.service import ROOT
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

PAGE = ROOT / "docs" / "operations.md"


def put(running: Service, name: str, **rules: int | str) -> None:
    assert running.get(f"/counters/{name}", "PUT", json.dumps(rules).encode(), **ADMIN)[0] == 201


def test_counters_move_to_another_store(
    empty_valkey: RedisServer, empty_postgres: PostgresServer, service: Callable[..., Service], tmp_path: Path
) -> None:
    """Run as it stands on the page; again, it changes nothing."""
    if shutil.which("jq") is None:
        pytest.skip("no jq is installed")
    old = service(empty_valkey.url, "/readyz", workers=1)
    put(old, "seats", limit=500)
    put(old, "sold", limit=7)
    put(old, "pairs", limit=100, most=2)
    put(old, "nobody", limit=3)
    put(old, "daily", limit=9, every="day", zone="Europe/Berlin")
    for path, times in (
        ("/counters/seats?n=40", 3),
        ("/counters/sold?n=7", 1),
        ("/counters/pairs?n=2", 9),
        ("/", 2),
        ("/counters/daily", 4),
    ):
        for _ in range(times):
            assert old.get(path, "POST")[0] == 200
    assert old.get("/counters/sold", "PUT", b'{"limit": 5}', **ADMIN)[0] == 200
    before = {
        name: old.get(f"/counters/{name}")[1] for name in ("seats", "sold", "pairs", "nobody", "daily", "default")
    }
    old.terminate()

    new = service(empty_postgres.url, "/readyz", workers=1)
    block = re.search(r"<!-- moving: .*?```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    commands = block[1].replace(".venv/bin/pythonricing", str(Path(sys.executable).with_name("pythonricing")))
    given = {"OLD": empty_valkey.url, "NEW": empty_postgres.url, "NEW_SERVICE": new.url, "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=tmp_path,
            env=os.environ | given,
            timeout=PATIENCE,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert {name: new.get(f"/counters/{name}")[1] for name in before} == before
    assert new.get("/counters/seats", "POST")[1] == {"request_count": 121, "limit": 500}
    assert new.get("/counters/pairs?n=3", "POST")[0] == 422


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
