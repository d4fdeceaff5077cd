"""What is measured: an application on a server, with a store of its own and a number of workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtests.rig.processes import Unavailable, spawn, stop
from loadtests.rig.waiting import free_port, port_is_taken
from loadtests.stores import Postgres, Valkey
from loadtests.usage import Usage
from pythonricing.serve import servers

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent

#: A limit that no measurement reaches: every claim is admitted.
UNLIMITED = 2**53 - 1


def _of_service(name: str) -> Callable[[str, int, int], list[str]]:
    """As `pythonricing serve` starts it (serve/servers.py)."""
    return lambda target, port, workers: [
        name,
        *servers.command(name, target, host="127.0.0.1", port=port, workers=workers),
    ]


def _gunicorn(worker: str, *options: str) -> Callable[[str, int, int], list[str]]:
    """With its heartbeat's file in memory, as its documentation recommends where that is no disk."""
    return lambda target, port, workers: [
        *("gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", str(workers), "--worker-class", worker),
        *("--backlog", str(servers.BACKLOG), "--worker-tmp-dir", "/dev/shm", *options, target),
    ]


#: How each server is started after `python -m`, from an app, a port and a number of workers: a new one is an entry
#: here, with what its own documentation recommends for production.
SERVERS: dict[str, Callable[[str, int, int], list[str]]] = {
    "granian": _of_service("granian"),
    "uvicorn": _of_service("uvicorn"),
    "hypercorn": lambda target, port, workers: [
        *("hypercorn", "--bind", f"127.0.0.1:{port}", "--workers", str(workers), "--worker-class", "uvloop"),
        *("--backlog", str(servers.BACKLOG), "--keep-alive", str(servers.HEAD_SECONDS), target),
    ],
    "gunicorn": _gunicorn("uvicorn_worker.UvicornWorker"),
    "gunicorn-asgi": _gunicorn("asgi", "--asgi-loop", "uvloop"),
}

#: How each store is started in a folder; None where the workers keep it in their memory.
STORES: dict[str, Callable[[Path], Valkey | Postgres] | None] = {
    "redis": Valkey,
    "redis-fsync": partial(Valkey, fsync="always"),
    "unix": partial(Valkey, unix=True),
    "memory": None,
    "postgresql": lambda folder: Postgres(),
}


@dataclass(frozen=True)
class App:
    """An application. `stores` are those that it can count in; the first is meant where none is named."""

    target: str
    stores: tuple[str, ...]
    #: Whether it has the service's API, beyond `GET /` and `GET /counters/default`.
    is_service: bool = False
    #: Whether it has named counters that can be set.
    has_counters: bool = False
    #: Whether it claims to give every number once and no more than its limit.
    exact: bool = True


#: Every peer has an entry here and a module in `peers/`.
PEERS = {
    "constant": App("loadtests.peers.constant:app", ("none",), exact=False),
    "fastapi": App("loadtests.peers.fastapi_incr:app", ("redis",)),
    "library": App("loadtests.peers.fastapi_library:app", ("redis",), is_service=True),
    "read-then-write": App("loadtests.peers.read_then_write:app", ("redis",), exact=False),
    "asgi-incr": App("loadtests.peers.asgi_incr:app", ("redis",)),
    "asgi-batch": App("loadtests.peers.asgi_batch:app", ("redis",)),
    "limits": App("loadtests.peers.fastapi_limits:app", ("redis",), exact=False),
    "one-claim": App(
        "loadtests.peers.one_claim:app",
        ("redis", "redis-fsync", "unix", "postgresql"),
        is_service=True,
        has_counters=True,
    ),
}
APPS = {"service": App("pythonricing.app:app", tuple(STORES), is_service=True, has_counters=True), **PEERS}

SPELLING = re.compile(r"(?P<words>[a-z-]+(?:\+[a-z-]+)+)(?:\[(?P<options>[^\[\]]*)\])?")

#: Seconds until a refusal may no longer come from a worker's memory (PYTHONRICING_HALT_CACHE), with a margin.
AFTER_RESET = 0.25


class ContenderError(Exception):
    """A contender that did not start or that broke. Its text is one line."""


@dataclass(frozen=True)
class Contender:
    """One application on one server. `options` are words for the server's command line and PYTHONRICING_* settings."""

    app: str
    server: str
    store: str
    workers: int = 1
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Read `granian+redis`, `constant+uvicorn` or `granian+redis[--loop=asyncio]`. Raises ValueError."""
        match = SPELLING.fullmatch(text)
        if match is None:
            raise ValueError(f"{text}: not like granian+redis, constant+uvicorn or granian+redis[--loop=asyncio]")
        options = tuple((match["options"] or "").split())
        match match["words"].split("+"):
            case [server, store] if server in SERVERS and store in STORES:
                return cls("service", server, store, options=options)
            case [peer, server] if peer in PEERS and server in SERVERS:
                return cls(peer, server, PEERS[peer].stores[0], options=options)
            case [peer, server, store] if peer in PEERS and server in SERVERS and store in PEERS[peer].stores:
                return cls(peer, server, store, options=options)
        raise ValueError(
            f"{text}: a contender is {'|'.join(SERVERS)} + {'|'.join(STORES)}, or {'|'.join(PEERS)} + "
            f"{'|'.join(SERVERS)}, for some + a store"
        )

    @property
    def name(self) -> str:
        words = [self.server] if self.app == "service" else [self.app, self.server]
        if self.app == "service" or self.store != APPS[self.app].stores[0]:
            words.append(self.store)
        return "+".join(words) + (f"[{' '.join(self.options)}]" if self.options else "")

    @property
    def key(self) -> str:
        """The name and the number of workers: what a measurement belongs to."""
        return f"{self.name} x{self.workers}"

    @property
    def is_service(self) -> bool:
        """Whether it has the service's readiness and resets."""
        return APPS[self.app].is_service

    @property
    def has_counters(self) -> bool:
        """Whether it has named counters that can be set, and that all workers share."""
        return APPS[self.app].has_counters and self.synced

    @property
    def counts(self) -> bool:
        return self.store != "none"

    @property
    def synced(self) -> bool:
        """Whether all workers share one count."""
        return self.store != "memory" or self.workers == 1

    @property
    def exact(self) -> bool:
        """Whether it promises exactness, over all of its workers."""
        return APPS[self.app].exact and self.counts and self.synced

    def with_workers(self, workers: int) -> Contender:
        return replace(self, workers=workers)

    def command(self, port: int) -> list[str]:
        """The server's command line, as anybody would type it after `python -m`."""
        target = APPS[self.app].target
        words = [word for word in self.options if not word.startswith("PYTHONRICING_")]
        *line, target = SERVERS[self.server](target, port, self.workers)
        return [*line, *words, target]

    def environment(self, store_url: str, limit: int, token: str) -> dict[str, str]:
        """What the application is told; settings of the caller's own PYTHONRICING_* variables are left out."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONRICING_")}
        env |= {"PEER_STORE": store_url, "PEER_LIMIT": str(limit)}
        env |= {"PYTHONRICING_STORE": store_url, "PYTHONRICING_LIMIT": str(limit), "PYTHONRICING_ADMIN_TOKEN": token}
        env |= dict(word.split("=", 1) for word in self.options if word.startswith("PYTHONRICING_") and "=" in word)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        return env


class Running:
    """A contender that is up: `with Running(contender, limit) as running`. Raises ContenderError, Unavailable."""

    def __init__(self, contender: Contender, limit: int, *, port: int | None = None, token: str | None = None) -> None:
        self.contender = contender
        self.limit = limit
        self.token = token or secrets.token_hex(16)
        self.store: Valkey | Postgres | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="loadtests-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: subprocess.Popen[bytes] | None = None
        try:
            self.store = self._open_store()
            self.port = port or free_port()
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
        command = [sys.executable, "-m", *self.contender.command(self.port)]
        url = self.store.url if self.store else "memory://"
        # What it logs is read away, as a container's runtime does, and the end of it kept for when something is wrong.
        with (self.folder / "output").open("wb") as kept:
            self._reader = subprocess.Popen(
                ["tail", "-c", "8192"], stdin=subprocess.PIPE, stdout=kept, start_new_session=True
            )
        assert self._reader.stdin is not None
        with self._reader.stdin as pipe:
            env = self.contender.environment(url, self.limit, self.token)
            self._process = spawn(command, output=pipe.fileno(), env=env, cwd=ROOT)
        self._wait_until_answering()
        self._wait_until_quiet()

    def _wait_until_answering(self) -> None:
        path = "/readyz" if self.contender.is_service else "/counters/default"
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(self.url + path, timeout=5):
                    return
            except (OSError, urllib.error.URLError) as error:
                if not self.alive:
                    raise ContenderError(f"it ended while starting: {self.last_words()}") from None
                if time.monotonic() > deadline:
                    raise ContenderError(f"no answer within 60 s: {error}") from None
                time.sleep(0.05)

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

    def put(self, counter: str, limit: int) -> None:
        """Create a counter of the service with a limit, or set it. Raises ContenderError."""
        status, _ = self._ask("PUT", counter, json.dumps({"limit": limit}).encode())
        if status not in (200, 201):
            raise ContenderError(f"counter {counter} can't be set up: status {status}")

    def read(self, counter: str) -> Any:
        """The counter as the application reads it; None where it doesn't. Raises OSError."""
        status, answer = self._ask("GET", counter)
        return answer if status == 200 else None

    def _ask(self, method: str, counter: str, body: bytes | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/counters/{counter}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, None

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
                assert isinstance(self.store, Valkey)
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


__all__ = ["ROOT", "UNLIMITED", "Contender", "ContenderError", "Running", "Unavailable"]
