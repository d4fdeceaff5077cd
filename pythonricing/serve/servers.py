"""How each server is started: said here once, for `pythonricing serve`, the image, Kubernetes, the tests and the lab.

What is written elsewhere (Containerfile, deploy/) is held to it by tests/serve/test_servers.py.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pythonricing.serve.address import Address

APP = "pythonricing.app:app"
LOG_CONFIG = Path(__file__).with_name("granian-log.json")

#: Connections that wait to be accepted.
BACKLOG = 4096
#: Connections of one worker, idle ones too: no queue length but a guard for its file descriptors, far above what load
#: balancers keep open. Whoever opens more waits until one of them ends.
CONNECTIONS = 8192
#: File descriptors of one worker, which needs some for itself.
DESCRIPTORS = CONNECTIONS + 1024
#: Seconds for the head of a request, from its connection's start or the end of the request before: a connection that
#: says nothing, or only half, is closed.
HEAD_SECONDS = 5
#: Bytes that it may have: more is a 431. What a browser or a proxy sends is a tenth of it.
HEAD_BYTES = 64 * 1024
#: Seconds that a worker gets to stop, whatever its clients do, or a signal that met it while it was starting.
KILL_SECONDS = 10

#: Options as the servers' command lines name them; True and False stand for `--name` and `--no-name`.
GRANIAN: dict[str, str | int | bool] = {
    "interface": "asgi",
    # With `auto`, a connection that never says which version it speaks has no time limit at all.
    "http": "1",
    "http1-header-read-timeout": HEAD_SECONDS * 1000,
    "http1-buffer-size": HEAD_BYTES,
    "ws": False,
    "loop": "uvloop",
    "backlog": BACKLOG,
    "backpressure": CONNECTIONS,
    "respawn-failed-workers": True,
    "workers-kill-timeout": KILL_SECONDS,
}
UVICORN: dict[str, str | int | bool] = {
    "interface": "asgi3",
    "http": "httptools",
    "timeout-keep-alive": HEAD_SECONDS,
    "ws": "none",
    "loop": "uvloop",
    "backlog": BACKLOG,
    "access-log": False,
    "timeout-graceful-shutdown": KILL_SECONDS,
}
SERVERS = {"granian": GRANIAN, "uvicorn": UVICORN}


def command(
    server: str, target: str, *, host: str, port: int, workers: int, log_config: Path | None = None
) -> list[str]:
    """The command line that starts `target` on a server, without the program's name."""
    options = {"host": host, "port": port, "workers": workers, **SERVERS[server]}
    if log_config is not None:
        options["log-config"] = str(log_config)
    return [*words(options), target]


def words(options: Mapping[str, str | int | bool]) -> list[str]:
    found = []
    for name, value in options.items():
        found += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return found


def allow_connections() -> None:
    """Raise this process's limit of file descriptors, and its workers', to what their connections need, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        raised = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


def granian(address: Address, workers: int) -> None:
    """Run Granian, as its own command line does, until SIGTERM or SIGINT."""
    from granian.cli import cli

    arguments = command("granian", APP, host=address.host, port=address.port, workers=workers, log_config=LOG_CONFIG)
    cli.main([*arguments, *(["--uds", address.uds] if address.uds else [])], standalone_mode=False)


def uvicorn(address: Address, workers: int) -> None:
    """Run uvicorn until SIGTERM or SIGINT. Raises ImportError if it isn't installed.

    Its own command line would serve from this process where there is one worker, and end it with the signal.
    """
    from uvicorn import Config
    from uvicorn.supervisors import Multiprocess

    from pythonricing.serve.protocol import Protocol

    options: dict[str, object] = {name.replace("-", "_"): value for name, value in UVICORN.items()}
    options["http"] = Protocol
    options |= {"host": address.host, "port": address.port, "uds": address.uds}
    config = Config(APP, workers=workers, log_config=None, log_level="info", **options)  # type: ignore[arg-type]
    allow_connections()
    Multiprocess(config, sockets=[config.bind_socket()]).run()
