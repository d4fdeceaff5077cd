"""What is shipped for Prometheus and Grafana asks for what `/metrics` serves, and alerts when it should."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from tests.docs_check import anchors
from tests.telemetry.test_metrics import of, scrape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

ROOT = Path(__file__).parents[2]
DASHBOARD, RULES = (ROOT / "deploy" / name for name in ("grafana-dashboard.json", "prometheus-rules.yaml"))
#: What Grafana puts in the place of its variables, for Prometheus that looks once a second.
VARIABLES = {"$job": ".*", "$counter": ".*", "$__rate_interval": "10s"}
#: Labels that Prometheus adds itself, and that of histograms.
OTHERS = {"job", "instance", "le"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def questions() -> list[str]:
    """The queries of the dashboard's panels, as Grafana sends them."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        asked = [question.replace(variable, value) for question in asked]
    return asked


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture
def busy(empty_valkey: RedisServer, service: Callable[..., Service]) -> Service:
    running = service(empty_valkey.url, workers=2, limit=20, wait_for="/readyz")
    assert running.get("/?hold=1", "POST")[0] == 200
    wait_until(lambda: not running.get("/counters/default")[1].get("held"), "the hold to expire")
    asyncio.run(hammer(running.port, 4, [1] * 30, "/"))
    wait_until(lambda: of(scrape(running), "claims_total", counter="default", outcome="refused") == 10, "the claims")
    return running


def test_queries_name_metrics_and_labels_that_there_are(busy: Service) -> None:
    there: dict[str, set[str]] = {}
    for name, labels in scrape(busy):
        there.setdefault(name, set()).update(label for label, _ in labels)
    asked = [*questions(), *(rule["expr"] for rule in rules())]
    names = set(re.findall(r"pythonricing_\w+", " ".join(asked)))
    assert names <= there.keys()
    of_histograms = {name for name in there if name.endswith(("_bucket", "_sum", "_count", "_created"))}
    served = {name for name in there if name.startswith("pythonricing_")} - of_histograms
    assert served <= set(re.findall(r"pythonricing_\w+", " ".join(questions()))), "metrics that no panel shows"
    for question in asked:
        known = {label for name in re.findall(r"pythonricing_\w+", question) for label in there[name]} | OTHERS
        by = {label for some in re.findall(r"by \(([\w, ]+)\)", question) for label in some.split(", ")}
        matched = set(re.findall(r'(\w+)=~?"', question))
        assert by | matched <= known, question


def test_every_panel_says_what_it_shows() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in panels())


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor in anchors((ROOT / page).read_text()), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool is installed: it is in Debian's package prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    promtool("check", "rules", str(RULES))


def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    tests = Path(__file__).with_name("prometheus-rules-test.yaml")
    promtool("test", "rules", str(tests))
    assert all(tests.read_text().count(f"alertname: {rule['alert']}\n") for rule in rules()), "an alert without a test"


@pytest.fixture
def prometheus(busy: Service, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that looks at the service once a second, and has the rules."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus is installed: it is in Debian's package prometheus")
    scraped = {"job_name": "pythonricing", "static_configs": [{"targets": [f"127.0.0.1:{busy.port}"]}]}
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [scraped],
    }
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(yaml.safe_dump(settings))
    port = free_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'data'}"),
                *("--web.listen-address", f"127.0.0.1:{port}", "--log.level=warn"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def answer(prometheus: str, path: str, **query: str) -> Any:
    """What Prometheus says; None while it can't be asked."""
    try:
        with urlopen(f"{prometheus}/api/v1/{path}?{urlencode(query)}", timeout=PATIENCE) as told:
            return json.load(told)["data"]
    except OSError:
        return None


def test_prometheus_answers_every_query_of_the_dashboard(busy: Service, prometheus: str) -> None:
    for question in questions():

        def answered(question: str = question) -> Any:
            asyncio.run(hammer(busy.port, 1, [1], "/"))  # so that rates have something to be about
            values = (answer(prometheus, "query", query=question) or {}).get("result", [])
            return [value for value in values if value["value"][1] != "NaN"]

        wait_until(answered, question)


def test_prometheus_has_every_alert_and_fires_what_is_so(prometheus: str) -> None:
    def firing() -> set[str]:
        told = (answer(prometheus, "alerts") or {}).get("alerts", [])
        return {alert["labels"]["alertname"] for alert in told if alert["state"] == "firing"}

    wait_until(lambda: "PythonricingHalted" in firing(), "the alert of a counter that is sold out")
    assert firing() == {"PythonricingHalted"}
    told = [rule for group in answer(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in told] == [rule["alert"] for rule in rules()]
    assert {rule["health"] for rule in told} == {"ok"}
