"""Failovers, a migration and partitions under load: what clients were told, held against what is promised.

`python -m loadtests.failovers --rounds 10` does every drill that often and prints the table; `--publish` writes it into
docs/failovers.md, too.
"""

from __future__ import annotations

import datetime
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import psutil

from loadtests.machine import describe
from loadtests.publish import PublishError, publish
from loadtests.revisions import ROOT
from loadtests.rig.clients import History
from loadtests.rig.cluster import ClusterServers
from loadtests.rig.judge import judge, numbers_of_workers, tail
from loadtests.rig.load import TOKEN, Load, put_counters
from loadtests.rig.proxy import Proxy
from loadtests.rig.redis import redis_programs
from loadtests.rig.sentinels import SentinelServers
from loadtests.rig.service import Service
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.redis import RedisServer

#: Of each counter.
LIMIT = 1_500
COUNTERS = ("default", "seats")
#: Claims that end before anything breaks.
BEFORE = 500
#: Clients, and the seconds that each rests after an answer: below 1,600 claims a second, so that no machine is fast
#: enough to reach the limit before the fault is there.
CLIENTS, REST = 16, 0.01
#: What happens to a master. The paused one goes on after the failover, and takes itself for the master at first.
Harm = Literal["kill", "pause"]


@dataclass
class Outcome:
    """What the clients of a drill were told."""

    #: Numbers that were given to clients.
    admitted: int
    #: How many different ones there are among them.
    distinct: int
    #: Those that another claim was given too, and those above the limit.
    over: int
    #: Claims that got a 503 or no answer.
    unanswered: int
    #: The longest time between two answers that were 200 or 429, from the fault on; None: no such answer came.
    seconds: float | None
    #: Whether a counter was closed (503 State lost) until an operator speaks.
    closed: bool


def outcome(history: History, fault: float, served: History | None = None) -> Outcome:
    """Sum up a history whose fault was at this monotonic time; `served` is the part whose service is timed."""
    owned = [(name, number) for name in history.counters() for number in history.of(name).owned()]
    times = sorted(call.at for call in (served or history).calls if call.status in (200, 429))
    return Outcome(
        admitted=len(owned),
        distinct=len(set(owned)),
        over=len(owned) - len({(name, number) for name, number in owned if number <= LIMIT}),
        unanswered=sum(1 for call in history.calls if call.status not in (200, 429)),
        seconds=max((after - before for before, after in pairwise(times) if after > fault), default=None),
        closed=bool(closed(history)),
    )


def closed(history: History) -> set[str]:
    """The counters that were closed."""
    return {call.counter for call in history.calls if call.status == 503 and call.body["title"] == "State lost"}


def judge_workers(history: History, *services: Service) -> None:
    """Hold a history against what is promised even where a store forgets what it has acknowledged.

    No worker gives a number twice, none is above the limit, and every answer is a 200, 429 or 503.
    """
    twice = {whose: len(n) - len(set(n)) for whose, n in numbers_of_workers(*services).items() if len(n) > len(set(n))}
    above = [number for call in history.calls for number in call.numbers if number > LIMIT]
    others = set(history.statuses()) - {200, 429, 503}
    verdict = [twice, above, others]
    assert not any(verdict), f"{twice=} {above=} {others=}\n{history.summary()}\n{tail(services[0])}"


def options(confirm: int) -> tuple[str, ...]:
    """The data servers' options: as the README recommends them where `confirm` replicas confirm."""
    safe = ("--min-replicas-to-write", str(confirm), "--min-replicas-max-lag", "2") if confirm else ()
    return ("--appendfsync", "everysec", *safe)


class Drill:
    """Starts what a drill needs, and stops all of it at the end. A context manager."""

    def __init__(self, folder: Path, *, confirm: int = 0, on_loss: str = "halt") -> None:
        self.folder = folder
        self._settings: dict[str, Any] = {"store_replicas": confirm, "on_loss": on_loss, "admin_token": TOKEN}
        self._stack = ExitStack()
        self.services: list[Service] = []
        self.loads: list[Load] = []

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def sentinel(self, *options: str, **more: Any) -> SentinelServers:
        servers = SentinelServers(self.folder / "servers", *options, **more)
        self._stack.callback(servers.stop)
        return servers.start()

    def cluster(self, *options: str, **more: Any) -> ClusterServers:
        servers = ClusterServers(self.folder / "servers", *options, **more)
        self._stack.callback(servers.stop)
        return servers.start()

    def proxy(self, target: int) -> Proxy:
        proxy = Proxy(target)
        self._stack.callback(proxy.stop)
        return proxy

    def serve(self, url: str, workers: int = 2) -> Service:
        service = Service(self.folder, url, workers=workers, **self._settings)
        self._stack.callback(service.stop)
        self.services.append(service)
        service.start("/readyz")
        put_counters(service, LIMIT, COUNTERS)
        return service

    def load(self, service: Service) -> Load:
        load = Load(service, counters=COUNTERS, clients=CLIENTS, rest=REST)
        self._stack.callback(load.stop)
        self.loads.append(load)
        return load

    def begin(self, url: str) -> tuple[Service, Load]:
        """A service under load, of which every worker has given numbers of each counter."""
        service = self.serve(url)
        load = self.load(service)
        load.wait_for(BEFORE)
        wait_until(
            lambda: len(numbers_of_workers(service)) == service.workers * len(COUNTERS), "every worker to admit claims"
        )
        return service, load

    def end(self) -> History:
        """Wait until every service has, of each counter, reached the limit or closed it; then stop the loads."""

        def ended(load: Load, name: str) -> bool:
            history = load.history.of(name)
            return 429 in history.statuses() or bool(closed(history))

        for load in self.loads:
            for name in COUNTERS:
                wait_until(partial(ended, load, name), f"the limit of {name}")
        return History([call for load in self.loads for call in load.stop().calls])


def strike(harm: Harm, server: RedisServer) -> float:
    """Do harm to a server; returns when, as monotonic time."""
    now = time.monotonic()
    server.kill() if harm == "kill" else server.pause()
    return now


def bring_back(harm: Harm, server: RedisServer) -> None:
    """End what `strike` began."""
    if harm == "kill":
        server.start()
    else:
        server.resume()


def sentinel_failover(folder: Path, harm: Harm, *, confirm: int = 0, replicas: int = 2) -> Outcome:
    """The master dies or falls silent; once another is promoted, the old one comes back.

    Where all replicas confirm, whichever is promoted has everything.
    """
    with Drill(folder, confirm=confirm) as drill:
        servers = drill.sentinel(*options(confirm), replicas=replicas)
        service, _ = drill.begin(servers.url)
        old = servers.master
        fault = strike(harm, old)
        servers.wait_for_failover(old)
        bring_back(harm, old)
        history = drill.end()
        if confirm == replicas:
            assert not closed(history), tail(service)
            judge(history, service, limit=LIMIT, statuses={200, 429, 503})
        else:
            judge_workers(history, service)
        return outcome(history, fault)


def leave_behind(replica: RedisServer, master: RedisServer) -> dict[str, int]:
    """Cut a replica off from its master for good, and return the counts that it has."""
    # The master asks for no password and refuses one, so the replica can't come back; Sentinels reach it as before.
    replica.run("CONFIG", "SET", "masterauth", "wrong")
    wait_until(
        lambda: (
            master.run("CLIENT", "KILL", "TYPE", "REPLICA") is not None
            and replica.info("replication").get("master_link_status") == "down"
        ),
        "the replica to lose its master",
    )
    return {name: int(replica.run("HGET", f"pythonricing:{{{name}}}", "count")) for name in COUNTERS}


def lagging_replica(folder: Path, *, on_loss: str = "halt", confirm: int = 0) -> Outcome:
    """The replica that is promoted lacks numbers that every worker has given.

    With `confirm` there is a second replica, which has them all and is not promoted.
    """
    with Drill(folder, on_loss=on_loss, confirm=confirm) as drill:
        servers = drill.sentinel(*options(0), replicas=1 + confirm)
        service, _ = drill.begin(servers.url)
        old, behind = servers.master, servers.replicas[0]
        for other in servers.replicas[1:]:
            other.run("CONFIG", "SET", "replica-priority", "200")
        counts = leave_behind(behind, old)
        wait_until(
            lambda: all(max(numbers) > counts[name] for (_, name), numbers in numbers_of_workers(service).items()),
            "every worker to know more than the replica",
        )
        fault = strike("kill", old)
        assert servers.wait_for_failover(old) is behind
        behind.run("CONFIG", "SET", "masterauth", "")
        bring_back("kill", old)
        history = drill.end()
        judge_workers(history, service)
        assert closed(history) == (set(COUNTERS) if on_loss == "halt" else set()), tail(service)
        return outcome(history, fault)


def cluster_failover(folder: Path, harm: Harm, *, confirm: int = 0) -> Outcome:
    """The master of the shard of `default` dies or falls silent; once its replica is promoted, it comes back."""
    with Drill(folder, confirm=confirm) as drill:
        servers = drill.cluster(*options(confirm), replicas_each=1)
        service, _ = drill.begin(servers.url)
        slot = servers.slot_of("default")
        old = servers.owner_of(slot)
        fault = strike(harm, old)
        servers.wait_for_failover(slot, old)
        bring_back(harm, old)
        history = drill.end()
        if confirm:
            assert not closed(history), tail(service)
            judge(history, service, limit=LIMIT, statuses={200, 429, 503})
        else:
            judge_workers(history, service)
        return outcome(history, fault)


def migration(folder: Path) -> Outcome:
    """The slot of `default` moves to another shard, and back, a key at a time."""
    with Drill(folder) as drill:
        servers = drill.cluster(*options(0))
        service, load = drill.begin(servers.url)
        slot = servers.slot_of("default")
        first = servers.owner_of(slot)
        other = next(server for server in servers.servers if server is not first)
        fault = time.monotonic()
        for to in (other, first, other):
            for _ in servers.migration(slot, to, keys=1):
                time.sleep(0.02)
            load.wait_for(50)
        history = drill.end()
        judge(history, service, limit=LIMIT, statuses={200, 429, 503})
        return outcome(history, fault)


def migration_and_failover(folder: Path) -> Outcome:
    """The slot of `default` moves to another shard, whose master dies at once; one replica confirms.

    WAIT is about what a connection has written: the keys that MIGRATE has just brought may not have reached the
    replica although it confirms. Whether they had is for the workers to notice: no one gives a number again that it has
    seen, and a counter that is behind is closed.
    """
    with Drill(folder, confirm=1) as drill:
        servers = drill.cluster(*options(1), replicas_each=1)
        service, _ = drill.begin(servers.url)
        slot = servers.slot_of("default")
        first = servers.owner_of(slot)
        owners = (servers.owner_of(servers.slot_of(str(number))) for number in itertools.count())
        new = next(owner for owner in owners if owner is not first)
        for _ in servers.migration(slot, new, keys=100):
            pass
        fault = strike("kill", new)
        servers.wait_for_failover(slot, new)
        bring_back("kill", new)
        history = drill.end()
        judge_workers(history, service)
        return outcome(history, fault)


def killed_worker(folder: Path) -> Outcome:
    """One of four workers is killed under load; the server starts another."""
    with Drill(folder) as drill:
        servers = drill.sentinel(*options(0), replicas=1)
        service = drill.serve(servers.url, workers=4)
        load = drill.load(service)
        load.wait_for(BEFORE)
        fault = time.monotonic()
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        load.wait_for(100)
        history = drill.end()
        judge(history, service, limit=LIMIT, statuses={200, 429, 0}, killed=True)
        return outcome(history, fault)


def partition(folder: Path, *, confirm: int = 0) -> Outcome:
    """The old master and one service are cut off from the Sentinels, the replica and another service, then rejoined.

    The side of the old master goes on with it as long as it can; the other side promotes the replica.
    """
    with Drill(folder, confirm=confirm) as drill:
        doors: list[Proxy] = []

        def door(port: int) -> int:
            """Only the first master stands behind a proxy."""
            if not doors:
                doors.append(drill.proxy(port))
                return doors[0].port
            return port

        servers = drill.sentinel(*options(confirm), replicas=1, door=door)
        old, new = servers.servers
        ways = [drill.proxy(sentinel.port) for sentinel in servers.sentinels]
        minority = drill.serve(f"redis+sentinel://{','.join(f'127.0.0.1:{way.port}' for way in ways)}/service/0", 1)
        majority = drill.serve(servers.url, 1)
        loads = [drill.load(minority), drill.load(majority)]
        for load in loads:
            load.wait_for(BEFORE // 2)
        inside = set(minority.worker_pids())
        fault = time.monotonic()
        for way in ways:
            way.set("silent")
        doors[0].part(lambda client: client in ports_of(inside))
        assert servers.wait_for_failover(old) is new
        if not confirm:
            loads[0].wait_for(50)
            loads[1].wait_for(50)
        # What was confirmed before the cut may have been answered after it; what is asked now can't be.
        asked = minority.get("/", "POST")[0]
        for way in ways:
            way.set("pass")
            way.drop()
        doors[0].heal()
        history = drill.end()
        if confirm:
            assert asked == 503
            assert not closed(history), tail(minority)
            judge(history, majority, minority, limit=LIMIT, statuses={200, 429, 503})
        else:
            judge_workers(history, minority, majority)
        return outcome(history, fault, loads[1].history)


def ports_of(pids: set[int]) -> set[int]:
    """The local TCP ports of some processes."""
    return {link.laddr.port for pid in pids for link in psutil.Process(pid).net_connections("tcp")}


def sentinel(harm: Harm, replicas: int, confirm: int) -> Callable[[Path], Outcome]:
    return partial(sentinel_failover, harm=harm, replicas=replicas, confirm=confirm)


def cluster(harm: Harm, confirm: int) -> Callable[[Path], Outcome]:
    return partial(cluster_failover, harm=harm, confirm=confirm)


#: The table's rows.
DRILLS: dict[str, Callable[[Path], Outcome]] = {
    "Sentinel, 2 replicas, SIGKILL": sentinel("kill", 2, 0),
    "Sentinel, 2 replicas, SIGSTOP": sentinel("pause", 2, 0),
    "Sentinel, 1 replica confirms, SIGKILL": sentinel("kill", 1, 1),
    "Sentinel, 1 replica confirms, SIGSTOP": sentinel("pause", 1, 1),
    "Sentinel, 2 of 3 replicas confirm, SIGKILL": sentinel("kill", 3, 2),
    "Sentinel, 2 of 3 replicas confirm, SIGSTOP": sentinel("pause", 3, 2),
    "Sentinel promotes a replica that lags, halt": lagging_replica,
    "Sentinel promotes a replica that lags, raise": partial(lagging_replica, on_loss="raise"),
    "Sentinel promotes a replica that lags, another had confirmed, halt": partial(lagging_replica, confirm=1),
    "Cluster, SIGKILL": cluster("kill", 0),
    "Cluster, SIGSTOP": cluster("pause", 0),
    "Cluster, 1 replica confirms, SIGKILL": cluster("kill", 1),
    "Cluster, 1 replica confirms, SIGSTOP": cluster("pause", 1),
    "Cluster, the counter's slot moves three times": migration,
    "Cluster, 1 replica confirms, the counter's slot moves, then SIGKILL": migration_and_failover,
    "One of 4 workers, SIGKILL": killed_worker,
    "Partition": partition,
    "Partition, 1 replica confirms": partial(partition, confirm=1),
}


def row(name: str, outcomes: list[Outcome]) -> str:
    """A line of the table: sums over all rounds, and the median and longest time without service."""
    gaps = [each.seconds for each in outcomes if each.seconds is not None and not each.closed]
    cells = [
        *(name, f"{len(outcomes)}"),
        *(f"{sum(getattr(o, what) for o in outcomes):,}" for what in ("admitted", "distinct", "over", "unanswered")),
        f"{statistics.median(gaps):.1f} ({max(gaps):.1f})" if gaps else "",
        f"{sum(each.closed for each in outcomes)}",
    ]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--rounds", default=10, show_default=True, help="How often each drill is done.")
@click.option("--only", default="", help="Only drills whose name contains this.")
@click.option("--publish", "published", is_flag=True, help="Write the table into docs/failovers.md, too.")
def main(rounds: int, only: str, published: bool) -> None:
    """Do every drill and print what clients were told, as a Markdown table."""
    machine = describe()
    store = subprocess.run([redis_programs()[0], "--version"], capture_output=True, text=True, check=True).stdout
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        click.echo(line)

    say(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['kernel']}, {machine['python']}, Granian {machine['versions']['granian']}, "
        f"{store.split(' sha')[0].replace('server v=', '')}; {len(COUNTERS)} counters of {LIMIT:,} numbers a round\n"
    )
    say("| | rounds | admitted | distinct | over the limit | unanswered | seconds without service | closed |")
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    broken = 0
    for name, drill in DRILLS.items():
        if only not in name:
            continue
        outcomes = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="pythonricing-") as folder:
                try:
                    outcomes.append(drill(Path(folder)))
                except AssertionError as error:
                    broken += 1
                    click.echo(f"{name}: {error}", err=True)
        if outcomes:
            say(row(name, outcomes))
    if published:
        if broken or only:
            raise click.ClickException("not published: every drill has to be done, and to keep its promises")
        try:
            publish(ROOT / "docs" / "failovers.md", "\n".join(lines))
        except PublishError as error:
            raise click.ClickException(str(error)) from None
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
