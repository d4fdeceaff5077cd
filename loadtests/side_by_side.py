"""The "side by side" tab of Locust's web UI: one row for each server under test, live.

It uses what Locust offers for this, its template arguments `extended_tabs`, `extended_tables` and
`extended_csv_files`, and adds the rows to the answer that the page asks for every two seconds.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from flask import Blueprint, make_response, request

from loadtests.latencies import Latencies
from loadtests.usage import Usage

if TYPE_CHECKING:
    from flask import Response
    from locust.env import Environment

KEY = "side-by-side"

COLUMNS = {
    "name": "Server",
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

#: Seconds that requests/s looks back.
WINDOW = 5


class Server:
    """What is known of one server under test, since the test started."""

    def __init__(self, name: str, url: str, pid: int | None) -> None:
        self.name = name
        self.url = url
        self._pid = pid
        #: Of all counters in play; None if that isn't known.
        self.limit: int | None = None
        self.reset()

    def reset(self) -> None:
        self.latencies = Latencies()
        self.failures = 0
        self.refused = 0
        self.admitted = 0
        #: What was wrong with the sums, once a test has ended.
        self.faults: list[str] = []
        self.started: float | None = None
        self.ended = 0.0
        self._second: deque[tuple[int, int]] = deque(maxlen=WINDOW + 1)
        self._usage = self._read_usage()

    def _read_usage(self) -> Usage | None:
        return Usage.of(self._pid) if self._pid is not None else None

    def record(self, milliseconds: float, *, failed: bool, admitted: int, refused: bool) -> None:
        """One answer: `admitted` is how many numbers it gave."""
        self.ended = time.perf_counter()
        if self.started is None:
            self.started = self.ended - milliseconds / 1000
        self.latencies.add(milliseconds)
        self.failures += failed
        self.refused += refused
        self.admitted += admitted
        second = int(self.ended)
        if self._second and self._second[-1][0] == second:
            self._second[-1] = (second, self._second[-1][1] + 1)
        else:
            self._second.append((second, 1))

    @property
    def seconds(self) -> float:
        return self.ended - self.started if self.started is not None else 0.0

    def requests_per_second(self) -> float:
        """Of the last whole seconds; once the test has ended, of all of it."""
        now = time.perf_counter()
        if self.started is None:
            return 0.0
        if now - self.ended > 2 or now - self.started < 2:
            return self.latencies.count / max(self.seconds, 0.001)
        whole = [count for second, count in self._second if int(now) - WINDOW <= second < int(now)]
        return sum(whole) / min(WINDOW, max(1, int(now) - int(self.started)))

    def row(self) -> dict[str, Any]:
        usage = self._read_usage()
        cpu = usage.cpu_since(self._usage) if usage and self._usage else None
        return {
            "name": self.name,
            "requests": self.latencies.count,
            "rps": round(self.requests_per_second(), 1),
            "p50": round(self.latencies.percentile(50), 2),
            "p95": round(self.latencies.percentile(95), 2),
            "p99": round(self.latencies.percentile(99), 2),
            "failures": self.failures,
            "cpu": round(cpu * 1e6 / self.latencies.count, 1) if cpu is not None and self.latencies.count else "-",
            "memory": round(usage.resident_mb, 1) if usage else "-",
            "admitted": f"{self.admitted} of {self.limit}" if self.limit is not None else str(self.admitted),
            "faults": len(self.faults),
        }


def rows(servers: list[Server]) -> list[dict[str, Any]]:
    return [server.row() for server in servers]


def as_csv(servers: list[Server]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writerow(COLUMNS)
    writer.writerows(rows(servers))
    return text.getvalue()


def as_text(servers: list[Server]) -> str:
    """The table for a terminal."""
    lines = [tuple(COLUMNS.values()), *(tuple(str(cell) for cell in row.values()) for row in rows(servers))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def add_tab(environment: Environment, servers: list[Server]) -> None:
    """Give Locust's web UI the tab, its rows, and the download of its table."""
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
        response = make_response(as_csv(servers))
        response.headers["Content-Type"] = "text/csv"
        response.headers["Content-Disposition"] = f"attachment;filename={KEY}.csv"
        return response

    @web_ui.app.after_request
    def extend(response: Response) -> Response:
        if request.path == f"{base}/stats/requests" and response.is_json and environment.runner:
            # Locust keeps this answer for two seconds. Right after the start an old one would still say that nothing
            # has started, on which the page goes back to its form and stops asking.
            state = {"state": environment.runner.state, "user_count": environment.runner.user_count}
            extended = {"extended_stats": [{"key": KEY, "data": rows(servers)}]}
            response.set_data(json.dumps({**(response.json or {}), **state, **extended}))
        return response

    web_ui.app.register_blueprint(blueprint)
