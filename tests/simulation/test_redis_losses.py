"""What the simulated Redis can lose, and what its replicas have: the faults of a simulation, one by one."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest

from pythonricing.stores.redis.store import CLAIM
from tests.simulation.redis import BUSY, LOADING, MISCONF, Server, Session

SECOND = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ask(session: Session, *words: Any) -> Any:
    """A command's reply, over its bytes in both directions."""
    (command,) = session.feed(hiredis.pack_command(words))
    reader = hiredis.Reader(encoding="utf-8")
    reader.feed(session.execute(command))
    return reader.gets()


def write(server: Server, count: int, first: int = 0) -> None:
    session = server.connect()
    for number in range(first, first + count):
        ask(session, "SET", f"key-{number}", number)


def test_commands_may_arrive_in_pieces(clock: Clock) -> None:
    session = Server(clock).connect()
    data = hiredis.pack_command(("SET", "a", "1")) + hiredis.pack_command(("GET", "a"))  # type: ignore[arg-type]
    commands = [command for position in range(len(data)) for command in session.feed(data[position : position + 1])]
    assert commands == [[b"SET", b"a", b"1"], [b"GET", b"a"]]
    assert [session.execute(command) for command in commands] == [b"+OK\r\n", b"$1\r\n1\r\n"]


def test_a_value_is_the_same_object_until_somebody_writes_to_its_key(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    ask(session, "HSET", "h", "a", 1)
    before = server.value(b"h")
    ask(session, "HGETALL", "h")
    assert server.value(b"h") is before
    ask(session, "HSET", "h", "b", 2)
    assert before == {b"a": b"1"}
    assert server.value(b"h") == {b"a": b"1", b"b": b"2"}
    ask(session, "EXPIRE", "h", 5)
    clock.step(6)
    assert server.value(b"h") is None


def test_a_database_belongs_to_a_connection(clock: Clock) -> None:
    server = Server(clock)
    one, other = server.connect(), server.connect()
    ask(one, "SELECT", 3)
    ask(one, "SET", "a", 1)
    assert ask(other, "GET", "a") is None
    assert server.contents(3) == {b"a": (b"1", 0)}


def test_keys_expire_by_a_clock_that_may_step(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    ask(session, "SET", "a", 1, "EX", 10)
    ask(session, "SET", "b", 1, "EX", 10)
    clock.step(10)
    assert ask(session, "TTL", "a") == 0
    clock.step(0.001)
    assert ask(session, "GET", "a") is None
    clock.step(-5)
    assert ask(session, "EXISTS", "a") == 0
    assert ask(session, "TTL", "b") == 5
    clock.step(100)
    server.expire()
    clock.step(-100)
    assert ask(session, "EXISTS", "b") == 0


def test_what_is_synced_with_every_write_is_never_lost(clock: Clock) -> None:
    server = Server(clock, appendfsync="always")
    write(server, 5)
    assert server.unsynced == 0
    server.restart()
    assert len(server.contents()) == 5


def test_a_crash_loses_what_was_not_synced(clock: Clock) -> None:
    server = Server(clock)
    write(server, 5)
    clock.step(1)
    write(server, 3, first=5)
    assert server.unsynced == 3
    server.restart(lost=1)
    assert len(server.contents()) == 7
    write(server, 2, first=20)
    server.restart()
    assert len(server.contents()) == 7


def test_a_restart_undoes_changes_of_every_kind(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    ask(session, "HSET", "hash", "x", 1)
    ask(session, "ZADD", "zset", 1, "x")
    ask(session, "SADD", "set", "x")
    ask(session, "SET", "string", 1, "EX", 100)
    server.sync()
    before = server.contents()
    ask(session, "HSET", "hash", "x", 2, "y", 1)
    ask(session, "ZADD", "zset", 2, "x")
    ask(session, "SREM", "set", "x")
    ask(session, "PERSIST", "string")
    ask(session, "SET", "new", 1)
    ask(session, "FLUSHALL")
    assert server.contents() == {}
    server.restart()
    assert server.contents() == before


def test_a_script_is_lost_as_a_whole(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    ask(session, "EVAL", "redis.call('SET', 'a', 1) redis.call('SET', 'b', 1) return redis.call('HGET', 'a', 'x')", 0)
    assert set(server.contents()) == {b"a", b"b"}  # its error undoes nothing
    assert server.unsynced == 1
    server.restart(lost=1)
    assert server.contents() == {}


def test_a_restart_forgets_scripts_and_without_a_file_everything(clock: Clock) -> None:
    server = Server(clock, appendonly=False)
    session = server.connect()
    digest = ask(session, "SCRIPT", "LOAD", "return 1")
    assert ask(session, "EVALSHA", digest, 0) == 1
    write(server, 1)
    server.restart()
    assert str(ask(server.connect(), "EVALSHA", digest, 0)).startswith("NOSCRIPT")
    assert server.contents() == {}


def test_a_backup_is_of_its_moment(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    ask(session, "HSET", "hash", "x", 1)
    backup = server.copy()
    ask(session, "HSET", "hash", "x", 2)
    write(server, 2)
    server.restore(backup)
    assert ask(server.connect(), "HGETALL", "hash") == ["x", "1"]
    ask(server.connect(), "HSET", "hash", "x", 3)
    other = Server(clock)
    other.restore(backup)
    assert ask(other.connect(), "HGETALL", "hash") == ["x", "1"]


def test_only_what_the_policy_allows_is_evicted(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    ask(session, "SET", "kept", 1)
    ask(session, "SET", "volatile", 1, "EX", 10)
    assert not server.evict(b"volatile")
    server.config[b"maxmemory-policy"] = b"volatile-lru"
    assert server.evict(b"volatile")
    assert not server.evict(b"kept")
    server.config[b"maxmemory-policy"] = b"allkeys-lru"
    assert server.evict(b"kept")
    assert server.contents() == {}


def test_a_server_may_refuse_writes_or_everything(clock: Clock) -> None:
    server = Server(clock)
    session = server.connect()
    server.write_refusal = MISCONF
    assert str(ask(session, "SET", "a", 1)).startswith("MISCONF")
    assert str(ask(session, "EVAL", "return redis.call('DEL', 'a')", 0)).startswith("MISCONF")
    assert ask(session, "GET", "a") is None
    for refusal in (LOADING, BUSY):
        server.refusal = refusal
        assert str(ask(session, "GET", "a")) == refusal.decode()
    server.refusal = server.write_refusal = b""
    assert ask(session, "SET", "a", 1) == "OK"


def test_a_replica_lags_and_catches_up(clock: Clock) -> None:
    primary, replica = Server(clock), Server(clock)
    write(primary, 2)
    replica.follow(primary)
    assert replica.lag == 0
    assert replica.contents() == primary.contents()
    write(primary, 3, first=2)
    assert replica.lag == 3
    replica.catch_up(1)
    assert len(replica.contents()) == 3
    assert replica.lag == 2
    replica.catch_up()
    assert replica.contents() == primary.contents()


def test_a_script_reaches_a_replica_as_what_it_changed(clock: Clock) -> None:
    primary, replica = Server(clock), Server(clock)
    replica.follow(primary)
    arguments = (*[""] * 6, "halt", 604800, 1, 0, 60, 86400, 60, 100, 8, 1, 1, -1)
    first = ask(primary.connect(), "EVAL", CLAIM.source, 3, "counter", "receipt", "key", *arguments)
    clock.step(5)
    assert replica.lag == 1
    replica.catch_up()
    assert replica.contents() == primary.contents()
    counter: Any = replica.contents()[b"counter"][0]
    assert first.split()[1] == counter[b"epoch"].decode()


def test_wait_counts_the_replicas_that_have_said_so(clock: Clock) -> None:
    primary, one, other = Server(clock), Server(clock), Server(clock)
    session, reader = primary.connect(), primary.connect()
    for replica in (one, other):
        replica.follow(primary)
    ask(session, "SET", "a", 1)
    wait = [b"WAIT", b"1", b"500"]
    assert session.blocks(wait) == 500
    assert session.blocks([b"WAIT", b"1", b"0"]) == float("inf")
    assert ask(session, "WAIT", 1, 500) == 0
    assert ask(reader, "WAIT", 1, 500) == 2  # it has written nothing
    one.catch_up(acknowledge=False)
    assert session.blocks(wait) == 500
    one.acknowledge()
    assert session.blocks(wait) is None
    assert ask(session, "WAIT", 1, 500) == 1
    other.catch_up()
    assert ask(session, "WAIT", 2, 500) == 2
    one.leave()
    assert ask(session, "WAIT", 2, 500) == 1


def test_waitaof_counts_disks(clock: Clock) -> None:
    primary, replica = Server(clock, appendfsync="always"), Server(clock)
    replica.follow(primary)
    session = primary.connect()
    ask(session, "SET", "a", 1)
    command = [b"WAITAOF", b"1", b"1", b"100"]
    assert session.blocks(command) == 100
    replica.catch_up()
    assert ask(session, "WAITAOF", 1, 1, 100) == [1, 0]
    replica.sync()
    assert session.blocks(command) is None
    assert ask(session, "WAITAOF", 1, 1, 100) == [1, 1]


def test_a_promotion_loses_what_the_replica_lacks(clock: Clock) -> None:
    primary, replica, third = Server(clock), Server(clock), Server(clock)
    replica.follow(primary)
    third.follow(primary)
    write(primary, 2)
    replica.catch_up()
    write(primary, 2, first=2)
    third.catch_up()
    assert str(ask(replica.connect(), "SET", "x", 1)).startswith("READONLY")
    replica.promote()
    assert ask(replica.connect(), "ROLE")[0] == "master"
    write(replica, 1, first=10)
    primary.follow(replica)
    third.follow(replica)
    assert set(replica.contents()) == {b"key-0", b"key-1", b"key-10"}
    assert primary.contents() == third.contents() == replica.contents()
    assert ask(primary.connect(), "ROLE")[0] == "slave"
    write(replica, 1, first=11)
    assert (primary.lag, third.lag) == (1, 1)
    third.catch_up()
    assert third.contents() == replica.contents()


def test_a_replica_takes_a_copy_from_a_primary_that_began_anew(clock: Clock) -> None:
    primary, replica = Server(clock), Server(clock)
    replica.follow(primary)
    write(primary, 3)
    replica.catch_up()
    session = primary.connect()
    primary.restart()
    assert ask(session, "WAIT", 0, 10) == 0
    assert len(replica.contents()) == 3
    write(primary, 1, first=7)
    replica.catch_up()
    assert replica.contents() == primary.contents() == {b"key-7": (b"7", 0)}


def test_a_replica_that_restarts_takes_a_copy(clock: Clock) -> None:
    primary, replica = Server(clock), Server(clock)
    replica.follow(primary)
    write(primary, 3)
    replica.catch_up()
    replica.restart()
    replica.catch_up()
    assert replica.contents() == primary.contents()
    write(primary, 1, first=7)
    replica.catch_up()
    assert replica.contents() == primary.contents()


def test_a_replica_leaves_expiry_to_its_primary(clock: Clock) -> None:
    primary, replica = Server(clock), Server(clock)
    replica.follow(primary)
    ask(primary.connect(), "SET", "a", 1, "EX", 10)
    replica.catch_up()
    clock.step(20)
    assert ask(replica.connect(), "GET", "a") is None
    assert replica.lag == 0
    clock.step(-15)
    assert ask(replica.connect(), "GET", "a") == "1"
    clock.step(15)
    assert ask(primary.connect(), "GET", "a") is None
    replica.catch_up()
    clock.step(-15)
    assert ask(replica.connect(), "GET", "a") is None


def test_settings_and_lists_that_the_service_asks_for(clock: Clock) -> None:
    session = Server(clock, appendfsync="always").connect()
    assert ask(session, "CONFIG", "GET", "appendonly") == ["appendonly", "yes"]
    assert ask(session, "CONFIG", "GET", "appendfsync") == ["appendfsync", "always"]
    assert ask(session, "CONFIG", "GET", "maxmemory-policy") == ["maxmemory-policy", "noeviction"]
    assert ask(session, "COMMAND", "INFO", "WAITAOF", "NOSUCH")[1] is None
    assert ask(session, "COMMAND", "INFO", "WAITAOF", "NOSUCH")[0][0] == "waitaof"
    assert "role:master" in ask(session, "INFO", "replication")
    assert ask(session, "AUTH", "secret") == "OK"
    assert ask(session, "CLIENT", "SETINFO", "LIB-NAME", "x") == "OK"


def test_servers_on_one_seed_do_the_same_to_the_byte(clock: Clock) -> None:
    def history() -> list[bytes]:
        session = Server(Clock()).connect()
        commands = [[b"SADD", b"s", b"b", b"a"], [b"SMEMBERS", b"s"], [b"HSET", b"h", b"y", b"1", b"x", b"2"]]
        return [session.execute(command) for command in [*commands, [b"HGETALL", b"h"], [b"TIME"]]]

    assert history() == history()
