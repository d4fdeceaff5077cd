"""Connections, settings, replication as clients see it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from tests.simulation.redis.keyspace import DATABASES
from tests.simulation.redis.replies import OK, Reply, ReplyError, Status
from tests.simulation.redis.table import COMMANDS, Arguments, command, integer, syntax_error, wrong_number

if TYPE_CHECKING:
    from tests.simulation.redis.server import Server

VERSION = b"9.1.0"


@command("PING", -1)
def ping(server: Server, words: Arguments) -> Reply:
    if len(words) > 2:
        raise ReplyError(wrong_number(b"ping"))
    return words[1] if len(words) > 1 else Status(b"PONG")


@command("ECHO", 2, always=True)
def echo(server: Server, words: Arguments) -> Reply:
    return words[1]


@command("TIME", 1, always=True)
def time(server: Server, words: Arguments) -> Reply:
    seconds, microseconds = divmod(server.now(), 1_000_000)
    return [b"%d" % seconds, b"%d" % microseconds]


@command("AUTH", -2, no_script=True, always=True)
def auth(server: Server, words: Arguments) -> Reply:
    return OK


@command("SELECT", 2, no_script=True, always=True)  # a real script may, for itself only
def select(server: Server, words: Arguments) -> Reply:
    index = integer(words[1])
    if not 0 <= index < DATABASES:
        raise ReplyError(b"ERR DB index is out of range")
    server.session.database = index
    server.select(index)
    return OK


@command("HELLO", -1, no_script=True, always=True)
def hello(server: Server, words: Arguments) -> Reply:
    if len(words) > 1 and integer(words[1], b"ERR Protocol version is not an integer or out of range") != 2:
        raise ReplyError(b"NOPROTO unsupported protocol version")
    role = b"master" if server.primary is None else b"replica"
    about: list[Reply] = [b"server", b"valkey", b"version", VERSION, b"proto", 2, b"id", server.session.number]
    return [*about, b"mode", b"standalone", b"role", role, b"modules", []]


@command("CLIENT SETNAME", 3, no_script=True, always=True)
@command("CLIENT SETINFO", 4, no_script=True, always=True)
def client_set(server: Server, words: Arguments) -> Reply:
    return OK


@command("CLIENT ID", 2, no_script=True, always=True)
def client_id(server: Server, words: Arguments) -> Reply:
    return server.session.number


@command("CONFIG GET", -3, no_script=True, always=True)
def config_get(server: Server, words: Arguments) -> Reply:
    patterns = [word.decode("latin-1").lower() for word in words[2:]]
    wanted = [name for name in server.config if any(fnmatchcase(name.decode(), pattern) for pattern in patterns)]
    return [word for name in wanted for word in (name, server.config[name])]


@command("COMMAND INFO", -2, no_script=True, always=True)
def command_info(server: Server, words: Arguments) -> Reply:
    found = [COMMANDS.get(word.upper()) for word in words[2:]]
    return [None if entry is None else [entry.name, entry.arity] for entry in found]


@command("INFO", -1, always=True)
def info(server: Server, words: Arguments) -> Reply:
    lines = [
        b"# Server",
        b"redis_version:7.2.4",
        b"server_name:valkey",
        b"valkey_version:" + VERSION,
        b"redis_mode:standalone",
        b"# Memory",
        b"maxmemory_policy:" + server.config[b"maxmemory-policy"],
        b"# Persistence",
        b"loading:%d" % server.refusal.startswith(b"LOADING"),
        b"aof_enabled:%d" % (server.config[b"appendonly"] == b"yes"),
        b"# Replication",
        b"role:" + (b"master" if server.primary is None else b"slave"),
        b"connected_slaves:%d" % len(server.followers),
        b"master_repl_offset:%d" % server.offset,
    ]
    return b"\r\n".join([*lines, b""])


@command("ROLE", 1, no_script=True, always=True)
def role(server: Server, words: Arguments) -> Reply:
    if server.primary is None:
        followers: list[Reply] = [[b"", b"0", b"%d" % follower.acknowledged] for follower in server.followers]
        return [b"master", server.offset, followers]
    return [b"slave", b"", 0, b"connected", server.offset]


@command("WAIT", 3, no_script=True)
def wait(server: Server, words: Arguments) -> Reply:
    _replicas(server, words)
    return server.confirmations(server.session.written)


@command("WAITAOF", 4, no_script=True)
def waitaof(server: Server, words: Arguments) -> Reply:
    _replicas(server, words)
    written = server.session.written
    return [int(server.on_disk(written)), server.confirmations(written, on_disk=True)]


def patience(server: Server, words: Arguments) -> float | None:
    """Milliseconds that WAIT or WAITAOF would wait by now, inf for ever; None if it would reply at once."""
    try:
        wanted, milliseconds = _replicas(server, words)
    except ReplyError:
        return None
    written = server.session.written
    on_disk = len(words) == 4
    if server.confirmations(written, on_disk=on_disk) >= wanted and (
        not on_disk or words[1] == b"0" or server.on_disk(written)
    ):
        return None
    return milliseconds or float("inf")


def _replicas(server: Server, words: Arguments) -> tuple[int, int]:
    """How many replicas WAIT or WAITAOF wants, and for how many milliseconds it waits. Raises ReplyError."""
    name = words[0].upper()
    if server.primary is not None:
        note = b"if a replica is configured to be writable (which is not the default) " if name == b"WAIT" else b""
        raise ReplyError(
            b"ERR %b cannot be used with replica instances. Please also note that %bwrites to replicas are just local"
            b" and are not propagated." % (name, note)
        )
    if name == b"WAITAOF":
        local = integer(words[1], b"ERR value is out of range, must be between 0 and 1")
        if not 0 <= local <= 1:
            raise ReplyError(b"ERR value is out of range, must be between 0 and 1")
        if local and server.config[b"appendonly"] != b"yes":
            raise ReplyError(b"ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.")
    wanted = integer(words[-2])
    milliseconds = integer(words[-1], b"ERR timeout is not an integer or out of range")
    if milliseconds < 0:
        raise ReplyError(b"ERR timeout is negative")
    return wanted, milliseconds


@command("FLUSHALL", -1, write=True)
def flushall(server: Server, words: Arguments) -> Reply:
    _check_flush(words)
    for index in range(DATABASES):
        server.empty(index)
    return OK


@command("FLUSHDB", -1, write=True)
def flushdb(server: Server, words: Arguments) -> Reply:
    _check_flush(words)
    server.empty(server.index)
    return OK


def _check_flush(words: Arguments) -> None:
    if len(words) > 2 or (len(words) == 2 and words[1].upper() not in (b"SYNC", b"ASYNC")):
        raise syntax_error()


@command("ASKING", 1)
@command("READONLY", 1)
def asking(server: Server, words: Arguments) -> Reply:
    raise ReplyError(b"ERR This instance has cluster support disabled")


@command("CLUSTER INFO", 2)
def cluster_info(server: Server, words: Arguments) -> Reply:
    raise ReplyError(b"ERR This instance has cluster support disabled")
