"""A contender that is up: started here with a store of its own, or a service that runs elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadtests import revisions
from loadtests.certificate import trust
from loadtests.contenders import STORES, Contender
from loadtests.placement import pin
from loadtests.rig.clients import Address
from loadtests.rig.processes import spawn, stop
from loadtests.rig.waiting import free_port, port_is_taken
from loadtests.usage import Usage

if TYPE_CHECKING:
    from loadtests.stores import Postgres, Valkey

#: Seconds until a refusal may no longer come from a worker's memory (PYTHONRICING_HALT_CACHE), with a margin.
AFTER_RESET = 0.25


class ContenderError(Exception):
    """A contender that did not start or that broke. Its text is one line."""


class Served:
    """An application at a URL, whose counters can be set and read."""

    def __init__(self, contender: Contender, limit: int, url: str, token: str) -> None:
        self.contender = contender
        self.limit = limit
        self.url = url
        self.token = token
        self.store: Valkey | Postgres | None = None
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.trusted = trust(url)
        self.at = Address(parts.port or (443 if self.trusted else 80), parts.hostname, self.trusted)

    def put(self, counter: str, limit: int) -> None:
        """Create a counter of the service with a limit, or set it. Raises ContenderError."""
        status, _ = self._ask("PUT", counter, json.dumps({"limit": limit}).encode())
        if status not in (200, 201):
            raise ContenderError(f"counter {counter} can't be set up: status {status}")

    def read(self, counter: str) -> Any:
        """The counter as the application reads it; None where it doesn't. Raises OSError."""
        status, answer = self._ask("GET", counter)
        return answer if status == 200 else None

    def held(self) -> float:
        """How many numbers its workers have taken ahead, as they say. Raises OSError."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=10, context=self.trusted) as answer:
                lines = answer.read().decode().splitlines()
        except urllib.error.HTTPError:
            return 0.0
        return sum(float(line.split()[-1]) for line in lines if line.startswith("pythonricing_leased_numbers"))

    def _ask(self, method: str, counter: str, body: bytes | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/counters/{counter}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.trusted) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, None


class Running(Served):
    """One that the lab has started: `with Running(contender, limit) as running`. Raises ContenderError, Unavailable."""

    def __init__(self, contender: Contender, limit: int, *, port: int | None = None, token: str | None = None) -> None:
        port = port or free_port()
        scheme = "https" if contender.tls else "http"
        super().__init__(contender, limit, f"{scheme}://127.0.0.1:{port}", token or secrets.token_hex(16))
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix="loadtests-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: subprocess.Popen[bytes] | None = None
        #: When it was started (time.monotonic), and how many seconds after that it first answered.
        self.begun = self.answered_after = 0.0
        try:
            self.home = revisions.checkout(contender.revision) if contender.revision else revisions.ROOT
            self.command = contender.command(port)
            self.store = self._open_store()
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _open_store(self) -> Valkey | Postgres | None:
        start = STORES.get(self.contender.store)
        return start(self.folder) if start else None

    def _start(self) -> None:
        if port_is_taken(self.port):
            raise ContenderError(f"port {self.port} is taken by another program")
        # What it logs is read away, as a container's runtime does, and the end of it kept for when something is wrong.
        with (self.folder / "output").open("wb") as kept:
            self._reader = subprocess.Popen(
                ["tail", "-c", "8192"], stdin=subprocess.PIPE, stdout=kept, start_new_session=True
            )
        assert self._reader.stdin is not None
        self.begun = time.monotonic()
        with self._reader.stdin as pipe:
            env = self.contender.environment(self.store, self.limit, self.token, self.home)
            self._process = spawn([sys.executable, "-m", *self.command], output=pipe.fileno(), env=env, cwd=self.home)
        self._wait_until_answering()
        self.answered_after = time.monotonic() - self.begun
        self._wait_until_quiet()

    def _wait_until_answering(self) -> None:
        path = "/readyz" if self.contender.is_service else "/counters/default"
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(self.url + path, timeout=5, context=self.trusted):
                    return
            except (OSError, urllib.error.URLError) as error:
                if not self.alive:
                    raise ContenderError(f"it ended while starting: {self.last_words()}") from None
                if time.monotonic() > deadline:
                    raise ContenderError(f"no answer within 60 s: {error}") from None
                time.sleep(0.01)

    def _wait_until_quiet(self) -> None:
        """Until the last worker has finished starting: the whole tree uses hardly any CPU for half a second."""
        deadline, quiet, before = time.monotonic() + 60, 0, self.usage()
        while quiet < 2 and time.monotonic() < deadline:
            time.sleep(0.25)
            now = self.usage()
            idle = now.same_processes(before) and now.cpu_since(before) < 0.05
            quiet, before = quiet + 1 if idle else 0, now

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        """The last line that it printed; only once it has ended."""
        self._stop_server()
        lines = (self.folder / "output").read_text(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it printed nothing"

    def usage(self) -> Usage:
        return Usage.of(self.pid)

    def place(self, server: tuple[int, ...], store: tuple[int, ...]) -> None:
        """Put all of its processes, and all of its store's, on these cores; none: on any."""
        pin(self.pid, server)
        for pid in self.store.pids if self.store else ():
            pin(pid, store)

    def reset(self) -> None:
        """Set the counter to 0. Workers that count for themselves are only reached by starting them anew."""
        match self.contender:
            case Contender(is_service=True, synced=True):
                self._ask("DELETE", "default")
                time.sleep(AFTER_RESET)
            case Contender(is_service=True):
                self._stop_server()
                self._start()
            case Contender(counts=True):
                assert self.store is not None
                self.store.forget()

    def _stop_server(self) -> None:
        if self._process is not None:
            stop(self._process)
        if self._reader is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._reader.wait(2)
            self._reader.kill()
            self._reader.wait()

    def close(self) -> None:
        self._stop_server()
        if self.store is not None:
            self.store.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Elsewhere(Served):
    """The service at a URL that somebody else has started: nothing is known of its processes, nor of its store.

    Its counters `default`, `audit-…` and `lab-…` begin anew. Raises ContenderError where that isn't allowed.
    """

    alive = True
    command = ()

    def __init__(self, contender: Contender, limit: int) -> None:
        super().__init__(contender, limit, contender.server, os.environ.get("PYTHONRICING_ADMIN_TOKEN", ""))
        try:
            self.reset()
        except OSError as error:
            raise ContenderError(f"it can't be reached: {error}") from None

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def usage(self) -> None:
        """Not known."""

    def last_words(self) -> str:
        return "not known"

    def put(self, counter: str, limit: int) -> None:
        if not self.token:
            raise ContenderError("its admin token is needed in PYTHONRICING_ADMIN_TOKEN")
        self._ask("DELETE", counter)
        super().put(counter, limit)

    def place(self, server: tuple[int, ...], store: tuple[int, ...]) -> None:
        """Where it runs isn't the lab's doing."""

    def reset(self) -> None:
        self.put("default", self.limit)
        time.sleep(AFTER_RESET)

    def close(self) -> None:
        """It goes on."""


def open_contender(contender: Contender, limit: int) -> Running | Elsewhere:
    """Raises ContenderError, Unavailable."""
    return Elsewhere(contender, limit) if contender.elsewhere else Running(contender, limit)
