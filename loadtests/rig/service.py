"""The service as a user starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

from loadtests.rig.clients import Client
from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from pythonricing.serve import servers

#: This checkout.
ROOT = Path(__file__).resolve().parents[2]


class Service:
    """The service as a user starts it: `command` is serve, granian or uvicorn."""

    def __init__(
        self,
        folder: Path,
        store: str | None,
        *,
        command: str = "granian",
        workers: int = 2,
        port: int | None = None,
        runtime: Path | None = None,
        multiproc: Path | None = None,
        **settings: object,
    ) -> None:
        self.port = port or free_port()
        self.workers = workers
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / f"service-{self.port}.log"
        self.errors = folder / f"service-{self.port}.err"
        self.environment = environment(settings if store is None else {"store": store, **settings})
        self.environment["XDG_STATE_HOME"] = str(folder)
        if runtime is not None:
            runtime.mkdir(exist_ok=True)
            self.environment["XDG_RUNTIME_DIR"] = str(runtime)
        if multiproc is not None:
            self.environment["PROMETHEUS_MULTIPROC_DIR"] = str(multiproc)
        # This checkout, whichever is installed.
        self.environment["PYTHONPATH"] = str(ROOT)
        scripts = Path(sys.executable).parent
        common = ["--workers", str(workers), "--port", str(self.port)]
        where = {"host": "127.0.0.1", "port": self.port, "workers": workers}
        granian = servers.command("granian", servers.APP, **where, log_config=servers.LOG_CONFIG)
        self.command = {
            "serve": [str(scripts / "pythonricing"), "serve", *common],
            "serve-uvicorn": [str(scripts / "pythonricing"), "serve", "--server", "uvicorn", *common],
            "granian": [str(scripts / "granian"), *granian],
            "granian-plain": [str(scripts / "granian"), "--interface", "asgi", *common, "pythonricing.app:app"],
            "uvicorn-plain": [str(scripts / "uvicorn"), *common, "pythonricing.app:app"],
            "uvicorn": [str(scripts / "uvicorn"), *servers.command("uvicorn", servers.APP, **where)],
        }[command]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait_for: str = "/livez") -> Service:
        """Start it and wait until `wait_for` answers 200."""
        with self.output.open("ab") as output, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=errors, env=self.environment, preexec_fn=default_signals
            )
        if wait_for:
            wait_until(lambda: self.get(wait_for)[0] == 200, f"{wait_for}\n{self.errors.read_text()}")
        if wait_for == "/readyz" and not {"memory://", "WARNING"} & set(self.environment.values()):
            # Not just the worker that answered: a server may lose a SIGTERM that meets a worker while it starts.
            wait_until(lambda: len(self._connected()) >= self.workers, "every worker to connect")
        return self

    def _connected(self) -> set[int]:
        """The workers that have reached the store, or one of its shards."""
        lines = self.output.read_text().splitlines()  # plain granian writes some that are not JSON
        records = [json.loads(line)["record"] for line in lines if line.startswith("{") and " connected" in line]
        return {record["process"]["id"] for record in records if record["message"].endswith(" connected")}

    def get(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """One request on a connection of its own: the status and the decoded JSON, or 0 if nobody answers."""
        return asyncio.run(self._get(path, method, body, headers))

    async def _get(self, path: str, method: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
        client = Client(self.port)
        try:
            return await client.request(path, method, body, **headers)
        except (OSError, asyncio.IncompleteReadError):
            return 0, None
        finally:
            client.close()

    def worker_pids(self) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            pids = self.worker_pids()
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                for pid in [*pids, self.process.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def log(self) -> list[dict[str, Any]]:
        """The records of every line on stdout; raises if one is not a JSON object with a record."""
        lines = self.output.read_text().splitlines(keepends=True)
        if self.process is not None and self.process.poll() is None and lines and not lines[-1].endswith("\n"):
            lines.pop()  # it is being written
        return [json.loads(line)["record"] for line in lines]


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONRICING_")}
    return kept | {f"PYTHONRICING_{name.upper()}": str(value) for name, value in settings.items()}


def default_signals() -> None:
    """Undo what a child inherits under `nohup` and a shell's `&`, which let it ignore SIGHUP and SIGINT."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
