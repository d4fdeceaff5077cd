"""Clients that tools make from the OpenAPI document work, and a linter of such documents finds nothing.

The tools are fetched, pinned to a version; where there is no Node.js or no way to fetch them, the tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.service import Service
from tests import shell
from tests.docs_check import ROOT, blocks
from tests.web.support import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadtests.rig.redis import RedisServer

pytestmark = pytest.mark.slow

PYTHON = f"""
from pythonricing_client import AuthenticatedClient, Client
from pythonricing_client.api.default import claim, claim_default, delete, list_, live, put, read
from pythonricing_client.api.default import confirm, give_back, release
from pythonricing_client.models import Claimed, CounterChange, CounterList, CounterView, Halted, ProblemDetails
from pythonricing_client.models import Resolved

import sys

anybody = Client(base_url=sys.argv[1])
admin = AuthenticatedClient(base_url=sys.argv[1], token="{TOKEN}")
assert live.sync(client=anybody).status == "alive"
created = put.sync_detailed("py", client=admin, body=CounterChange(limit=2**40))
assert (created.status_code, created.headers["location"]) == (201, "/counters/py")
assert claim.sync("py", client=anybody, n=2**33) == Claimed(2**33, 2**40)
assert claim.sync("py", client=anybody, n=5, idempotency_key="k") == Claimed(2**33 + 5, 2**40)
assert claim.sync("py", client=anybody, n=5, idempotency_key="k") == Claimed(2**33 + 5, 2**40)
assert isinstance(claim.sync("py", client=anybody, n=2**40), Halted)
assert isinstance(claim.sync("nobody", client=anybody), ProblemDetails)
assert claim_default.sync(client=anybody).request_count == 1
assert isinstance(read.sync("py", client=anybody), CounterView)
page = list_.sync(client=admin, after="default", limit=10)
assert isinstance(page, CounterList) and [each.name for each in page.counters] == ["py"]
assert isinstance(list_.sync(client=AuthenticatedClient(base_url=sys.argv[1], token="no")), ProblemDetails)
assert delete.sync_detailed("py", client=admin).status_code == 204
change = CounterChange(limit=10, each=4, every="day", zone="Europe/Berlin")
assert put.sync("sale", client=admin, body=change).renews.tzinfo is not None
held = claim.sync("sale", client=anybody, n=4, hold=600, for_="alice")
assert held.expires.tzinfo is not None
assert claim.sync("sale", client=anybody, for_="alice").violated_policies == ["each"]
confirmed = confirm.sync("sale", held.hold, client=anybody, n=2)
assert (confirmed.outcome, confirmed.held, confirmed.numbers) == ("confirmed", 4, [[1, 2]])
assert isinstance(release.sync("sale", held.hold, client=anybody), Resolved)
assert give_back.sync("sale", "1-1", client=admin).given_back == 1
assert read.sync("sale", client=anybody).count == 1
"""

TYPESCRIPT = f"""
import createClient from "openapi-fetch";
import type {{ paths }} from "./schema";

const client = createClient<paths>({{ baseUrl: process.argv[2] }});
const headers = {{ Authorization: "Bearer {TOKEN}" }};
const path = {{ name: "ts" }};
const put = await client.PUT("/counters/{{name}}", {{ params: {{ path }}, body: {{ limit: 10 }}, headers }});
if (put.response.status !== 201 || put.data?.limit !== 10) throw new Error("put");
const claimed = await client.POST("/counters/{{name}}", {{ params: {{ path, query: {{ n: 4 }} }} }});
const count: number | undefined = claimed.data?.request_count;
if (count !== 4) throw new Error("claim");
const refused = await client.POST("/counters/{{name}}", {{ params: {{ path, query: {{ n: 7 }} }} }});
if (refused.response.status !== 429 || !refused.error?.type.endsWith("#quota-exceeded")) throw new Error("refused");
const listed = await client.GET("/counters", {{ params: {{ query: {{ after: "default" }} }}, headers }});
if (listed.data?.counters.map((each) => each.name).join() !== "ts") throw new Error("list");
const held = await client.POST("/counters/{{name}}", {{ params: {{ path, query: {{ n: 2, hold: 600 }} }} }});
const hold = {{ name: "ts", id: held.data?.hold ?? "" }};
const confirmed = await client.POST("/counters/{{name}}/holds/{{id}}", {{ params: {{ path: hold }} }});
if (confirmed.data?.numbers[0][1] !== 6) throw new Error("confirm");
const gone = await client.DELETE("/counters/{{name}}", {{ params: {{ path }}, headers }});
if (gone.response.status !== 204) throw new Error("delete");
"""


@pytest.fixture
def running(empty_valkey: RedisServer, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, empty_valkey.url, admin_token=TOKEN).start("/readyz")
    (tmp_path / "openapi.json").write_text(json.dumps(service.get("/openapi.json")[1]))
    yield service
    service.stop()


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def fetch(folder: Path, *words: str) -> None:
    """Fetch tools, or skip the test."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {words[0]}")
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(words)}: {done.stderr[-200:]}")


def test_redocly_finds_nothing_by_its_recommended_rules(running: Service, tmp_path: Path) -> None:
    fetch(tmp_path, "npm", "install", "--prefix", ".", "@redocly/cli@2")
    said = run(tmp_path, "npx", "redocly", "lint", "--extends", "recommended-strict", "openapi.json")
    assert "Your API description is valid" in said  # where warnings are errors


def test_a_client_in_python_works(running: Service, tmp_path: Path) -> None:
    run(tmp_path, sys.executable, "-m", "venv", "venv")
    fetch(tmp_path, str(tmp_path / "venv/bin/pip"), "--quiet", "install", "openapi-python-client==0.29.*")
    ((line,),) = shell.blocks("docs/clients.md")
    run(tmp_path, "bash", "-c", f"venv/bin/{line}".replace("http://127.0.0.1:8080", running.url))
    (tmp_path / "pythonricing-client").rename(tmp_path / "client")
    (tmp_path / "client" / "use.py").write_text(PYTHON)
    run(tmp_path / "client", str(tmp_path / "venv/bin/python"), "use.py", running.url)
    shown = next(code for code in blocks((ROOT / "docs/clients.md").read_text()) if "pythonricing_client" in code)
    (tmp_path / "client" / "shown.py").write_text(shown.replace("http://127.0.0.1:8080", running.url))
    assert run(tmp_path / "client", str(tmp_path / "venv/bin/python"), "shown.py") == "3 of 100\n"


def test_a_client_in_typescript_works(running: Service, tmp_path: Path) -> None:
    fetch(tmp_path, "npm", "install", "--prefix", ".", "openapi-typescript@7", "openapi-fetch@0.17", "typescript@5")
    run(tmp_path, "npx", "openapi-typescript", "openapi.json", "--output", "schema.ts")
    (tmp_path / "use.ts").write_text(TYPESCRIPT)
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    options = ("--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler")
    (tmp_path / "process.d.ts").write_text("declare const process: { argv: string[] };")
    run(tmp_path, "npx", "tsc", *options, "--skipLibCheck", "use.ts", "process.d.ts")
    run(tmp_path, "node", "use.js", running.url)
