"""The "side by side" tab of Locust's web UI: a row for each server and scenario, and charts of them over time.

It uses what Locust offers for this, its template arguments `extended_tabs`, `extended_tables` and
`extended_csv_files`, adds the rows to the answer that the page asks for every two seconds, and a script that draws.
"""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, make_response, request

from loadtests.latencies import Latencies
from loadtests.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Response
    from locust.env import Environment

KEY = "side-by-side"
CHARTS = Path(__file__).with_name("side_by_side.js")

COLUMNS = {
    "name": "Server",
    "scenario": "Scenario",
    "requests": "# Requests",
    "rps": "Requests/s",
    "p50": "p50 (ms)",
    "p95": "p95 (ms)",
    "p99": "p99 (ms)",
    "failures": "# Failures",
    "cpu": "CPU µs/request",
    "memory": "Memory (MB)",
    "admitted": "Admitted of limit",
    "faults": "Sums wrong",
}
#: The share of a core from which on Locust's figures are its own, in percent.
SATURATED = 70.0


class Server:
    """A server under test, and what it has used."""

    def __init__(self, name: str, url: str, pid: int | None) -> None:
        self.name = name
        self.url = url
        self._pid = pid

    def usage(self) -> Usage | None:
        return Usage.of(self._pid) if self._pid is not None else None


class Row:
    """A scenario on a server: what is known of it since the test started, turn by turn."""

    def __init__(self, server: Server, scenario: str) -> None:
        self.server = server
        self.scenario = scenario
        #: Of all its counters.
        self.limit = 0
        self.reset()

    def reset(self) -> None:
        self.latencies = Latencies()
        self.failures = 0
        self.refused = 0
        self.admitted = 0
        #: What was wrong with the sums, once a test has ended.
        self.faults: list[str] = []
        #: Seconds from the start of the test, requests/s, p99 in ms, µs of CPU a request: of each turn.
        self.points: list[tuple[float, float, float, float | None]] = []
        self._seconds, self._cpu = 0.0, 0.0
        self._began = self._last = time.perf_counter()
        self._turn = Latencies()
        self._usage = self.server.usage()

    def begin(self) -> None:
        """Its turn has come."""
        self._began = self._last = time.perf_counter()
        self._usage = self.server.usage()

    def end(self, at: float) -> None:
        """It is over, `at` seconds from the start of the test, and nothing is on its way any more."""
        count, seconds = self._turn.count, self._last - self._began
        if count and seconds > 0:
            usage = self.server.usage()
            cpu = usage.cpu_since(self._usage) if usage and self._usage else None
            share = None if cpu is None else cpu * 1e6 / count
            self.points.append((at, count / seconds, self._turn.percentile(99), share))
            self._seconds += seconds
            self._cpu += cpu or 0.0
            self.latencies = Latencies.merged((self.latencies, self._turn))
        self._turn = Latencies()

    def record(self, milliseconds: float, *, failed: bool, admitted: int, refused: bool) -> None:
        """One answer: `admitted` is how many numbers it gave."""
        self._last = time.perf_counter()
        self._turn.add(milliseconds)
        self.failures += failed
        self.refused += refused
        self.admitted += admitted

    @property
    def requests(self) -> int:
        return self.latencies.count + self._turn.count

    def cells(self) -> dict[str, Any]:
        """Rates, latencies and CPU are of the turns that are over."""
        done, usage = self.latencies.count, self.server.usage()
        return {
            "name": self.server.name,
            "scenario": self.scenario,
            "requests": self.requests,
            "rps": round(done / self._seconds, 1) if self._seconds else 0.0,
            "p50": round(self.latencies.percentile(50), 2),
            "p95": round(self.latencies.percentile(95), 2),
            "p99": round(self.latencies.percentile(99), 2),
            "failures": self.failures,
            "cpu": round(self._cpu * 1e6 / done, 1) if self._cpu and done else "-",
            "memory": round(usage.resident_mb, 1) if usage else "-",
            "admitted": f"{self.admitted} of {self.limit}",
            "faults": len(self.faults),
        }


def as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()


def as_text(rows: list[Row]) -> str:
    """The table for a terminal."""
    lines = [tuple(COLUMNS.values()), *(tuple(map(str, row.cells().values())) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def saturation(percent: float) -> str:
    """What Locust's own load says of the figures."""
    said = f"Locust itself used up to {percent:.0f} % of a core"
    if percent < SATURATED:
        return f"{said}."
    return f"{said}: it is saturated, so that requests/s and latencies are its own limits. CPU µs/request still counts."


def add_tab(environment: Environment, rows: Callable[[], list[Row]], own: Callable[[], float]) -> None:
    """Give Locust's web UI the tab, its rows and charts, and the download of its table. `own` is Locust's own load."""
    web_ui = environment.web_ui
    assert web_ui is not None
    assert web_ui.app is not None
    base = (environment.parsed_options.web_base_path or "") if environment.parsed_options else ""
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Side by side", "key": KEY}],
        "extended_tables": [
            {"key": KEY, "structure": [{"key": key, "title": title} for key, title in COLUMNS.items()]}
        ],
        "extended_csv_files": [{"href": f"{base}/{KEY}/csv", "title": "Download side by side CSV"}],
    }
    blueprint = Blueprint("side_by_side", __name__, url_prefix=base or None)

    @blueprint.route(f"/{KEY}/csv")
    @web_ui.auth_required_if_enabled
    def download() -> Response:
        response = make_response(as_csv(rows()))
        response.headers["Content-Type"] = "text/csv"
        response.headers["Content-Disposition"] = f"attachment;filename={KEY}.csv"
        return response

    @blueprint.route(f"/{KEY}/charts.js")
    @web_ui.auth_required_if_enabled
    def charts() -> Response:
        response = make_response(CHARTS.read_text())
        response.headers["Content-Type"] = "text/javascript"
        return response

    @blueprint.route(f"/{KEY}/points")
    @web_ui.auth_required_if_enabled
    def points() -> Response:
        told = [{"name": f"{row.server.name} {row.scenario}", "points": row.points} for row in rows()]
        response = make_response(json.dumps({"rows": told, "own": saturation(own())}))
        response.headers["Content-Type"] = "application/json"
        return response

    @web_ui.app.after_request
    def extend(response: Response) -> Response:
        if request.path == f"{base}/stats/requests" and response.is_json and environment.runner:
            # Locust keeps this answer for two seconds. Right after the start an old one would still say that nothing
            # has started, on which the page goes back to its form and stops asking.
            state = {"state": environment.runner.state, "user_count": environment.runner.user_count}
            extended = {"extended_stats": [{"key": KEY, "data": [row.cells() for row in rows()]}]}
            response.set_data(json.dumps({**(response.json or {}), **state, **extended}))
        elif request.path in (f"{base}/", base) and response.mimetype == "text/html":
            script = f'<script defer src="{base}/{KEY}/charts.js"></script></body>'
            response.set_data(response.get_data(as_text=True).replace("</body>", script, 1))
        return response

    web_ui.app.register_blueprint(blueprint)
