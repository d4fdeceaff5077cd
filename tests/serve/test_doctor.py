"""`pythonricing doctor` finds what isn't as it should be, and says what to do."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

from loadtests.rig.processes import spawn
from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from pythonricing.serve import doctor, servers
from pythonricing.serve.opening import Opening
from pythonricing.settings import Settings
from tests.serve.commands import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from loadtests.rig.cluster import ClusterServers
    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer


def examine(home: Path, *words: str, **settings: object) -> tuple[int, dict[str, dict[str, Any]]]:
    status, output, _ = run("doctor", "--json", *words, home=home, **settings)
    return status, {each["subject"]: each for each in json.loads(output)}


def test_the_embedded_store_is_well(tmp_path: Path) -> None:
    status, found = examine(tmp_path)
    assert status == 0
    path = str(tmp_path / "pythonricing" / "valkey.sock")
    parts = ("version", "eviction", "append-only file", "fsync", "replicas", "disk", "clock")
    assert found["store"]["state"] == "ok"
    assert [found[f"{path} {part}"]["state"] for part in parts] == ["ok"] * len(parts)
    assert {"file descriptors", "workers"} <= found.keys()
    status, output, _ = run("doctor", home=tmp_path)
    assert output.startswith(f"ok       store: unix://{path} answers\n")


def test_what_a_redis_should_do_otherwise_is_said(redis_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = redis_server(None, "--appendonly", "no")
    node = f"127.0.0.1:{server.port}"
    status, found = examine(tmp_path, store=server.url)
    assert (status, found[f"{node} append-only file"]["state"]) == (1, "bad")
    assert "appendonly to yes" in found[f"{node} append-only file"]["do"]
    server.command("CONFIG", "SET", "appendonly", "yes")
    server.command("CONFIG", "SET", "appendfsync", "everysec")
    status, found = examine(tmp_path, store=server.url)
    assert status == 0
    assert "appendfsync to always" in found[f"{node} fsync"]["do"]
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert examine(tmp_path, store=server.url, store_timeout=0.5)[1]["store"]["state"] == "bad"
    status, found = examine(tmp_path, store=f"{server.url}?eviction=allowed")
    assert "noeviction" in found[f"{node} eviction"]["do"]
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    status, found = examine(tmp_path, store=server.url, store_replicas=1)
    assert (status, found[f"{node} replicas"]["state"]) == (1, "bad")


def test_replicas_that_need_not_confirm_are_warned_of(redis_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = redis_server(None, "--repl-diskless-sync-delay", "0")
    redis_server(None, "--replicaof", "127.0.0.1", str(server.port))
    wait_until(lambda: "state=online" in server.info("replication").get("slave0", ""), "the replica")
    subject = f"127.0.0.1:{server.port} replicas"
    found = examine(tmp_path, store=server.url)[1][subject]
    assert (found["state"], "PYTHONRICING_STORE_REPLICAS to 1" in found["do"]) == ("warning", True)
    assert examine(tmp_path, store=server.url, store_replicas=1)[1][subject]["state"] == "ok"


def test_what_a_redis_says_of_itself_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(**words: str) -> dict[str, str]:
        words = {"redis_version": "7.0.0", "appendonly": "yes", "dir": str(tmp_path)} | words
        found = doctor._redis("127.0.0.1:1", words, Opening(Settings(), False))
        return {each.subject.removeprefix("127.0.0.1:1 "): each.state for each in found}

    monkeypatch.setattr(doctor, "DISK", 0)
    well = judged()
    assert (well["version"], well["append-only file"], well["disk"]) == ("ok", "ok", "ok")
    assert judged(redis_version="6.2.14")["version"] == "bad"
    assert judged(valkey_version="8.1.0", redis_version="6.0.0")["version"] == "ok"
    assert judged(aof_last_write_status="err")["append-only file"] == "bad"
    monkeypatch.setattr(doctor, "DISK", 1 << 62)
    assert judged()["disk"] == "warning"


def test_a_clock_that_differs_is_warned_of() -> None:
    for ahead, state in ((0, "ok"), (499_999, "ok"), (500_000, "warning"), (-500_000, "warning")):
        assert doctor._clock("here", ahead).state == state
    assert doctor._clock("here", -2_000_000).says == "2.000 s behind this machine's"


def test_every_shard_of_a_cluster_is_examined_and_one_that_is_away_is_named(
    clusters: Callable[..., ClusterServers], tmp_path: Path
) -> None:
    servers = clusters("--appendfsync", "no", "--cluster-require-full-coverage", "no")
    _, found = examine(tmp_path, store=servers.url)
    assert sum(subject.endswith(" version") for subject in found) == 3
    away = servers.servers[1]
    away.kill()
    status, found = examine(tmp_path, store=servers.url)
    assert (status, found[f"127.0.0.1:{away.port}"]["state"]) == (1, "bad")
    assert sum(subject.endswith(" version") for subject in found) == 2


def test_a_redis_that_does_not_tell_its_configuration(redis_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = redis_server()
    server.command("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", "+@all", "-config")
    _, found = examine(tmp_path, store=server.url.replace("//", "//me:secret@"))
    assert "ask its provider" in found[f"127.0.0.1:{server.port} append-only file"]["do"]
    assert "secret" not in str(found)


def test_a_postgresql_without_fsync_is_bad(empty_postgres: PostgresServer, tmp_path: Path) -> None:
    status, found = examine(tmp_path, store=empty_postgres.url)  # the tests' own has fsync off
    assert (status, found["postgresql fsync"]["state"]) == (1, "bad")
    assert found["postgresql version"]["says"].startswith("PostgreSQL ")
    assert found["postgresql synchronous_commit"]["state"] == "ok"
    assert found["postgresql standbys"]["says"] == "0, of which 0 confirm"
    assert found["postgresql clock"]["state"] == "ok"


def test_what_a_postgresql_should_do_otherwise_is_said(empty_postgres: PostgresServer, tmp_path: Path) -> None:
    server = empty_postgres
    command = [str(server.programs / "pg_receivewal"), "--directory", str(server.folder)]
    with (tmp_path / "standby").open("wb") as output:
        standby = spawn([*command, "--dbname", server.url], output=output.fileno(), **server.identity())
    try:
        server.sql("ALTER ROLE postgres SET synchronous_commit = off", "SELECT")
        server.sql("ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()")
        wait_until(lambda: server.sql("SHOW full_page_writes") == [("off",)], "the configuration to be read")
        wait_until(lambda: server.sql("SELECT count(*) FROM pg_stat_replication") == [(1,)], "the standby")
        found = examine(tmp_path, store=server.url)[1]
    finally:
        server.sql("ALTER ROLE postgres RESET synchronous_commit", "SELECT")
        server.sql("ALTER SYSTEM RESET full_page_writes", "SELECT pg_reload_conf()")
        standby.kill()
        standby.wait(PATIENCE)
    assert found["postgresql full_page_writes"]["state"] == "bad"
    assert "synchronous_commit to on" in found["postgresql synchronous_commit"]["do"]
    assert found["postgresql standbys"]["says"] == "1, of which 0 confirm"
    assert "synchronous_standby_names" in found["postgresql standbys"]["do"]


def test_what_a_postgresql_says_of_itself_is_judged() -> None:
    words = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "standbys": "2", "synchronous": "1"}
    for version, state in (("13.9", "warning"), ("14.0", "ok")):
        found = {each.subject: each.state for each in doctor._postgres({**words, "version": version})}
        assert found.pop("postgresql version") == state
        assert set(found.values()) == {"ok"}


def test_a_store_that_is_away_is_bad_and_the_machine_is_examined_all_the_same(tmp_path: Path) -> None:
    store = f"redis://:s3cret@127.0.0.1:{free_port()}"
    status, found = examine(tmp_path, store=store, store_timeout=0.2)
    assert (status, found["store"]["state"]) == (1, "bad")
    assert "s3cret" not in str(found)
    assert "file descriptors" in found


def test_more_workers_than_cpus_are_warned_of(tmp_path: Path) -> None:
    _, found = examine(tmp_path, "--workers", "1024")
    assert found["workers"]["state"] == "warning"
    assert "--workers" in found["workers"]["do"]
    assert examine(tmp_path, "--workers", "1")[1]["workers"]["state"] == "ok"


def test_too_few_descriptors_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for hard, state in ((1024, "warning"), (servers.DESCRIPTORS, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda what, hard=hard: (1024, hard))
        assert {each.subject: each.state for each in doctor._machine(1)}["file descriptors"] == state


def test_a_containers_quota_and_the_kernels_setting_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"
    monkeypatch.setattr(doctor, "QUOTAS", paths)
    monkeypatch.setattr(doctor, "cpus", lambda: 8)
    monkeypatch.setattr(doctor, "MIGRATE", tmp_path / "tcp_migrate_req")
    assert "8 CPUs" in {each.subject: each.says for each in doctor._machine(8)}["workers"]
    paths[0].write_text("max 100000\n")
    assert {each.subject: each.state for each in doctor._machine(8)}["workers"] == "ok"
    paths[0].write_text("150000 100000\n")
    found = {each.subject: each for each in doctor._machine(8)}
    assert (found["workers"].state, found["workers"].says) == ("warning", "8 on 1.5 CPUs")
    paths[0].unlink()
    paths[1].write_text("400000\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert "4 CPUs" in {each.subject: each.says for each in doctor._machine(8)}["workers"]
    for value, state in (("0", "warning"), ("1", "ok")):
        (tmp_path / "tcp_migrate_req").write_text(f"{value}\n")
        assert {each.subject: each.state for each in doctor._machine(1)}["net.ipv4.tcp_migrate_req"] == state
