"""What is measured: an application on a server, with a store of its own and a number of workers."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from loadtests.certificate import certificate
from loadtests.revisions import ROOT
from loadtests.stores import Postgres, Valkey
from pythonricing.serve import servers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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

#: The options by which each of them is given a certificate and its key.
TLS = {
    "granian": ("--ssl-certificate", "--ssl-keyfile"),
    "uvicorn": ("--ssl-certfile", "--ssl-keyfile"),
    "hypercorn": ("--certfile", "--keyfile"),
    "gunicorn": ("--certfile", "--keyfile"),
    "gunicorn-asgi": ("--certfile", "--keyfile"),
}

#: How each store is started in a folder; None where the workers keep it in their memory.
STORES: dict[str, Callable[[Path], Valkey | Postgres] | None] = {
    "redis": Valkey,
    "redis-fsync": partial(Valkey, fsync="always"),
    "redis-replica": partial(Valkey, replica=True),
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
    "large": App("loadtests.peers.constant:large", ("none",), exact=False),
    "waits": App("loadtests.peers.constant:waits", ("none",), exact=False),
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

SPELLING = re.compile(r"(?P<words>[a-z-]+(?:\+[a-z-]+)+)(?:@(?P<revision>[^\s@\[\]]+))?(?:\[(?P<options>[^\[\]]*)\])?")
#: A service that runs already, on another machine.
A_URL = re.compile(r"https?://[^\s/?#]+")


@dataclass(frozen=True)
class Contender:
    """One application on one server.

    `options` are words for the server's command line, PYTHONRICING_* settings, and `tls`. Of a `revision` of this
    project the service's code runs, under the same interpreter, libraries and options as now.
    """

    app: str
    server: str
    store: str
    workers: int = 1
    options: tuple[str, ...] = ()
    revision: str = ""

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Read `granian+redis`, `constant+uvicorn[--loop=asyncio]`, `granian+redis@v0.1.0[tls]`, or a URL.

        Raises ValueError.
        """
        if A_URL.fullmatch(text):
            return cls("service", text, "elsewhere")
        match = SPELLING.fullmatch(text)
        if match is None:
            raise ValueError(f"{text}: not like granian+redis, constant+uvicorn or granian+redis[--loop=asyncio]")
        options, revision = tuple((match["options"] or "").split()), match["revision"] or ""
        match match["words"].split("+"):
            case [server, store] if server in SERVERS and store in STORES:
                return cls("service", server, store, options=options, revision=revision)
            case [peer, server] if peer in PEERS and server in SERVERS and not revision:
                return cls(peer, server, PEERS[peer].stores[0], options=options)
            case [peer, server, store] if (
                peer in PEERS and server in SERVERS and store in PEERS[peer].stores and not revision
            ):
                return cls(peer, server, store, options=options)
        raise ValueError(
            f"{text}: a contender is {'|'.join(SERVERS)} + {'|'.join(STORES)} (@ a revision), or {'|'.join(PEERS)} + "
            f"{'|'.join(SERVERS)}, for some + a store"
        )

    @property
    def name(self) -> str:
        if self.elsewhere:
            return self.server
        words = [self.server] if self.app == "service" else [self.app, self.server]
        if self.app == "service" or self.store != APPS[self.app].stores[0]:
            words.append(self.store)
        revision = f"@{self.revision}" if self.revision else ""
        return "+".join(words) + revision + (f"[{' '.join(self.options)}]" if self.options else "")

    @property
    def elsewhere(self) -> bool:
        """Whether it is the URL of a service that runs already."""
        return self.store == "elsewhere"

    @property
    def tls(self) -> bool:
        """Whether it is served over TLS, with a certificate made for the run."""
        return "tls" in self.options or self.server.startswith("https:")

    @property
    def key(self) -> str:
        """The name and the number of workers: what a measurement belongs to."""
        if self.elsewhere:
            return self.name
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
        """How many a service elsewhere has isn't known."""
        return self if self.elsewhere else replace(self, workers=workers)

    def command(self, port: int) -> list[str]:
        """The server's command line, as anybody would type it after `python -m`. Raises Unavailable."""
        target = APPS[self.app].target
        words = [word for word in self.options if not word.startswith("PYTHONRICING_") and word != "tls"]
        if self.tls:
            chain, key = TLS[self.server]
            words += [chain, str(certificate().chain), key, str(certificate().key)]
        *line, target = SERVERS[self.server](target, port, self.workers)
        return [*line, *words, target]

    def environment(self, store: Valkey | Postgres | None, limit: int, token: str, home: Path = ROOT) -> dict[str, str]:
        """What the application in `home` is told; the caller's own PYTHONRICING_* variables are left out."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONRICING_")}
        url = store.url if store else "memory://"
        env |= {"PEER_STORE": url, "PEER_LIMIT": str(limit)}
        env |= {"PYTHONRICING_STORE": url, "PYTHONRICING_LIMIT": str(limit), "PYTHONRICING_ADMIN_TOKEN": token}
        env |= store.settings if store else {}
        env |= dict(word.split("=", 1) for word in self.options if word.startswith("PYTHONRICING_") and "=" in word)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), env.get("PYTHONPATH")]))
        return env
