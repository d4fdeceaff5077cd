"""`pythonricing doctor`: what of a deployment isn't as it should be, and what to do about it."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from pythonricing.serve import servers
from pythonricing.serve.commands import JSON, STORE
from pythonricing.serve.embedded import state_folder
from pythonricing.serve.failure import Failure
from pythonricing.serve.opening import opening
from pythonricing.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pythonricing.serve.opening import Opening

#: Microseconds that a store's clock may differ: operators' words are held to it, which have the store's timeout.
CLOCK = 500_000
#: Bytes that should be left on the disk of an append-only file.
DISK = 1 << 30
MIGRATE = Path("/proc/sys/net/ipv4/tcp_migrate_req")
QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


class Finding(msgspec.Struct):
    """What was found. `bad`: claims would not be safe, or not be served; `warning`: they would in some event."""

    subject: str
    state: Literal["ok", "warning", "bad"]
    says: str
    #: What to do; nothing where all is well.
    do: str = ""


@click.command()
@click.option(
    "--workers", type=click.IntRange(1, 1024), help="Worker processes that it shall have.  [default: the CPUs]"
)
@STORE
@JSON
def doctor(workers: int | None, store: str | None, as_json: bool) -> None:
    """Check a deployment: the store, this machine, and what to do about either."""
    with opening(store=store) as opened:
        found = [*_store(opened), *_machine(workers or cpus())]
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        colours = {"ok": "green", "warning": "yellow", "bad": "red"}
        for each in found:
            click.echo(f"{click.style(f'{each.state:7}', fg=colours[each.state])}  {each.subject}: {each.says}")
            if each.do:
                click.echo(f"         do: {each.do}")
    sys.exit(any(each.state == "bad" for each in found))


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _check(subject: str, well: bool, says: str, do: str, *, bad: bool = False) -> Finding:
    return Finding(subject, "ok", says) if well else Finding(subject, "bad" if bad else "warning", says, do)


def _store(opened: Opening) -> Iterator[Finding]:
    shown = without_password(opened.settings.store)
    try:
        told = opened.act(lambda store: store.inspect())
    except Failure as failure:
        yield Finding("store", "bad", failure.message, "see that it runs, that its URL is right and that it lets us in")
        return
    yield Finding("store", "ok", f"{shown} answers")
    for server, words in told.items():
        if not words:
            yield Finding(server, "bad", "does not answer", "see that it runs, or that a replica takes its place")
            continue
        yield from _postgres(words) if "synchronous_commit" in words else _redis(server, words, opened)
        yield _clock(server, int(words["clock"]))


def _clock(server: str, ahead: int) -> Finding:
    says = f"{abs(ahead) / 1e6:.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    return _check(f"{server} clock", abs(ahead) < CLOCK, says, "let both machines follow NTP (chrony)")


def _redis(server: str, words: Mapping[str, str], opened: Opening) -> Iterator[Finding]:
    name, version = (
        ("Valkey", words["valkey_version"]) if "valkey_version" in words else ("Redis", words["redis_version"])
    )
    yield _check(
        f"{server} version", int(version.partition(".")[0]) >= 7, f"{name} {version}", "use 7.0 or later", bad=True
    )
    policy = words.get("maxmemory_policy", "unknown")
    do = "set maxmemory-policy to noeviction: what is evicted, receipts too, is counted twice"
    yield _check(f"{server} eviction", policy == "noeviction", policy, do)
    if "appendonly" not in words:
        do = "ask its provider whether it syncs an append-only file"
        yield Finding(f"{server} append-only file", "warning", "CONFIG GET is not allowed here", do)
    elif words["appendonly"] != "yes":
        do = "set appendonly to yes: without it a restart loses what was counted, and closes the counters"
        yield Finding(f"{server} append-only file", "bad", "off", do)
    else:
        failed = words.get("aof_last_write_status", "ok") != "ok"
        do = "see to its disk: it can't write what it counts"
        yield _check(f"{server} append-only file", not failed, "on" if not failed else "can't be written", do, bad=True)
        fsync = words.get("appendfsync", "unknown")
        do = "set appendfsync to always, or let a replica confirm: a crash of its machine may lose the last second"
        yield _check(f"{server} fsync", fsync == "always" or opened.embedded, fsync, do)
    replicas, wanted = int(words.get("connected_slaves", 0)), opened.settings.store_replicas
    says = f"{replicas}, of which {wanted} must confirm"
    if replicas < wanted:
        yield Finding(f"{server} replicas", "bad", says, "start replicas, or lower PYTHONRICING_STORE_REPLICAS")
    else:
        do = "set PYTHONRICING_STORE_REPLICAS to 1: a failover loses what no replica had to confirm"
        yield _check(f"{server} replicas", not replicas or wanted > 0, says, do)
    folder = state_folder() if opened.embedded else Path(words.get("dir", ""))
    if opened.embedded or (_is_here(server) and "dir" in words and folder.is_dir()):
        left = shutil.disk_usage(folder).free
        yield _check(f"{server} disk", left > DISK, f"{left / 2**30:.1f} GiB left in {folder}", "make room on its disk")


def _postgres(words: Mapping[str, str]) -> Iterator[Finding]:
    do = "use 14 or later"
    yield _check("postgresql version", int(words["version"].split(".")[0]) >= 14, f"PostgreSQL {words['version']}", do)
    for setting in ("fsync", "full_page_writes"):
        do = f"set {setting} to on: without it a crash may lose or spoil what was counted"
        yield _check(f"postgresql {setting}", words[setting] == "on", words[setting], do, bad=True)
    commit = words["synchronous_commit"]
    do = "set synchronous_commit to on: a crash may lose what was answered"
    yield _check("postgresql synchronous_commit", commit not in ("off", "local"), commit, do)
    standbys, synchronous = int(words["standbys"]), int(words["synchronous"])
    do = "name one in synchronous_standby_names: a failover loses what no standby had to confirm"
    says = f"{standbys}, of which {synchronous} confirm"
    yield _check("postgresql standbys", not standbys or synchronous > 0, says, do)


def _machine(workers: int) -> Iterator[Finding]:
    if MIGRATE.exists():
        do = "sysctl -w net.ipv4.tcp_migrate_req=1: connections that wait for a worker that ends are reset otherwise"
        value = MIGRATE.read_text().strip()
        yield _check("net.ipv4.tcp_migrate_req", value == "1", value, do)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= servers.DESCRIPTORS
    says = f"at most {'any number' if hard == resource.RLIM_INFINITY else f'{hard:,}'} for a worker"
    do = f"raise the hard limit (ulimit -n, LimitNOFILE) to {servers.DESCRIPTORS:,}: connections above it fail"
    yield _check("file descriptors", enough, says, do)
    allowed = min(cpus(), _quota() or cpus())
    says = f"{workers} on {allowed:g} CPUs"
    do = f"serve with --workers {max(1, round(allowed))}: more of them take turns, and batches get smaller"
    yield _check("workers", workers <= max(1, round(allowed)), says, do)


def _quota() -> float | None:
    """The CPUs that this container's cgroup may use; None: there is no bound."""
    for path in QUOTAS:
        try:
            quota, *period = path.read_text().split()
            within = period[0] if period else path.with_name("cpu.cfs_period_us").read_text()
            return int(quota) / int(within) if int(quota) > 0 else None
        except (OSError, ValueError):  # no such cgroup; "max"
            continue
    return None


def _is_here(server: str) -> bool:
    """Whether a server's disk is this machine's."""
    return server.startswith(("/", "127.0.0.1:", "localhost:", "::1:"))
