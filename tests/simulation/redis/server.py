"""A server: it executes commands, keeps what its disk and its replicas have, and can lose it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias, cast

import hiredis

from tests.simulation.redis.administration import patience
from tests.simulation.redis.keyspace import DATABASES, Entry, Keyspace, Unit
from tests.simulation.redis.replies import OOM, READ_ONLY, ReplyError, encode
from tests.simulation.redis.scripting import LUA
from tests.simulation.redis.table import COMMANDS, fits, look_up, printed, wrong_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulation.redis.replies import Reply
    from tests.simulation.redis.table import Arguments

SECOND = 1_000_000

Backup: TypeAlias = list[dict[bytes, Entry]]


class Session:
    """A client's connection."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.database = 0
        self.written = 0  # the server's offset after this connection's last write: what WAIT is about
        self._reader = hiredis.Reader()

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """The commands that are complete now. Raises hiredis.ProtocolError."""
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            yield cast("list[bytes]", command)

    def execute(self, command: list[bytes]) -> bytes:
        return self.server.execute(self, command)

    def blocks(self, command: list[bytes]) -> float | None:
        """For how many milliseconds this command would wait (inf: for ever), None if it would not; see WAIT."""
        if command[0].upper() not in (b"WAIT", b"WAITAOF"):
            return None
        self.server.session = self
        return patience(self.server, command)


class Server(Keyspace):
    """See the package's docstring."""

    def __init__(self, now: Callable[[], int], *, appendonly: bool = True, appendfsync: str = "everysec") -> None:
        super().__init__(now)
        self.config = {
            b"appendonly": b"yes" if appendonly else b"no",
            b"appendfsync": appendfsync.encode(),
            b"maxmemory-policy": b"noeviction",
        }
        self.full = False
        self.refusal = b""
        self.write_refusal = b""
        self.scripts: set[bytes] = set()
        self.session = Session(self, 0)  # whose command is being executed
        self._sessions = 0
        self._wrote = False  # the running script has, and so may use more memory

        self.offset = 0  # of changing commands, since the history began
        self.history = object()  # replaced when the server begins anew with other data: replicas need a copy then
        self.primary: Server | None = None
        self.followers: list[Server] = []
        self.acknowledged = 0  # the offset that this replica has told its primary
        self._log: deque[Unit] = deque()  # what not all followers have yet: the last of it is at `offset`
        self._unsynced: deque[Unit] = deque()
        self._last: Unit = []  # of the last command that changed something
        self._second = 0

    def connect(self) -> Session:
        self._sessions += 1
        return Session(self, self._sessions)

    # Commands

    def execute(self, session: Session, words: list[bytes]) -> bytes:
        self._begin()
        self.session = session
        self.select(session.database)
        try:
            return encode(self._execute(words))
        except ReplyError as error:
            return b"-%b\r\n" % error.text.replace(b"\r", b" ").replace(b"\n", b" ")
        finally:
            if self.changes:
                self._commit()
                session.written = self.offset

    def _execute(self, words: Arguments) -> Reply:
        found = COMMANDS.get(words[0]) or look_up(words)
        if found is None:
            shown = b"".join(b"'%b' " % printed(word) for word in words[1:])
            raise ReplyError(b"ERR unknown command '%b', with args beginning with: %b" % (printed(words[0]), shown))
        if not fits(found, words):
            raise ReplyError(wrong_number(found.name))
        if found.deny_oom and self.full:
            raise ReplyError(OOM)
        if found.write:
            self._check_write()
        if self.refusal and not found.always:
            raise ReplyError(self.refusal)
        return found.handler(self, words)

    def _check_write(self) -> None:
        if self.write_refusal:
            raise ReplyError(self.write_refusal)
        if self.primary is not None:
            raise ReplyError(READ_ONLY)

    def run_script(self, digest: bytes, count: int, words: Arguments) -> Reply:
        self._wrote = False
        return LUA.run(self, digest, count, words)

    def call_in_script(self, words: Arguments) -> Reply:
        """A command of the running script. Raises ReplyError."""
        found = COMMANDS.get(words[0]) or look_up(words)
        if found is None:
            raise ReplyError(b"ERR Unknown command called from script")
        handler, _, arity, write, deny_oom, no_script, _ = found
        if len(words) != arity and (arity > 0 or len(words) < -arity):
            raise ReplyError(b"ERR Wrong number of args calling command from script")
        if no_script:
            raise ReplyError(b"ERR This Valkey command is not allowed from script")
        if write:
            # One that has begun to write may go on: it can't stop in the middle.
            if deny_oom and self.full and not self._wrote:
                raise ReplyError(OOM)
            if self.write_refusal or self.primary is not None:
                self._check_write()
            self._wrote = True
        return handler(self, words)

    # What has happened to it

    def _begin(self) -> None:
        """Look at the clock."""
        now = self.now()
        self.milliseconds = now // 1000
        if now // SECOND != self._second:
            self._second = now // SECOND
            if self.config[b"appendfsync"] == b"everysec":
                self._unsynced.clear()

    def _commit(self) -> None:
        self._last, self.changes = self.changes, []
        self._append(self._last)

    def amend(self, key: bytes, value: bytes) -> None:
        """Have a value be a part of what the last command has changed, so that neither is ever had without the other."""
        self.select(0)
        self.put(key, (value, 0))
        self._last += self.changes
        self.changes = []

    def _append(self, unit: Unit) -> None:
        self.offset += 1
        if self.followers:
            self._log.append(unit)
        if self.config[b"appendfsync"] != b"always" and self.config[b"appendonly"] == b"yes":
            self._unsynced.append(unit)

    @property
    def unsynced(self) -> int:
        self._begin()
        return len(self._unsynced)

    def sync(self) -> None:
        self._unsynced.clear()

    def on_disk(self, offset: int) -> bool:
        return self.offset - self.unsynced >= offset and self.config[b"appendonly"] == b"yes"

    def restart(self, lost: int | None = None) -> None:
        unsynced = self.unsynced
        if self.config[b"appendonly"] != b"yes":
            self.databases = [{} for _ in range(DATABASES)]
        for _ in range(unsynced if lost is None else min(lost, unsynced)):
            self.undo(self._unsynced.pop())
        self._start()

    def copy(self) -> Backup:
        return [dict(entries) for entries in self.databases]

    def restore(self, backup: Backup) -> None:
        self.databases = [dict(entries) for entries in backup]
        self._start()

    def _start(self) -> None:
        self.scripts.clear()
        self._unsynced.clear()
        self._begin_history()
        if self.primary is not None:
            self.catch_up()

    def _begin_history(self) -> None:
        self.history = object()
        self.offset = self.acknowledged = 0
        self._log.clear()
        for follower in self.followers:
            follower.acknowledged = 0

    def evict(self, key: bytes, database: int = 0) -> bool:
        self._begin()
        self.select(database)
        policy = self.config[b"maxmemory-policy"]
        entry = self.entry(key)
        goes = entry is not None and policy != b"noeviction" and (policy.startswith(b"allkeys") or entry[1] > 0)
        if goes:
            self.put(key, None)
        if self.changes:
            self._commit()
        return goes

    def expire(self) -> None:
        self._begin()
        for index in range(DATABASES):
            self.select(index)
            for key in list(self.entries):
                self.entry(key)
            if self.changes:
                self._commit()

    def flush(self) -> None:
        self._begin()
        for index in range(DATABASES):
            self.empty(index)
        if self.changes:
            self._commit()

    # Replication

    def follow(self, primary: Server) -> None:
        """Become a replica of another, with a copy of all that it has."""
        self.leave()
        self.primary = primary
        self.expires_keys = False
        primary.followers.append(self)
        self._copy_primary()

    def _copy_primary(self) -> None:
        assert self.primary is not None
        self.databases = self.primary.copy()
        self._unsynced.clear()
        self._begin_history()
        self.history = self.primary.history
        self.offset = self.acknowledged = self.primary.offset

    @property
    def lag(self) -> int:
        assert self.primary is not None
        return self.primary.offset - (self.offset if self.history is self.primary.history else 0)

    def catch_up(self, n: int | None = None, *, acknowledge: bool = True) -> None:
        primary = self.primary
        assert primary is not None
        self._begin()
        if self.history is not primary.history:
            self._copy_primary()
            return
        behind = primary.offset - self.offset
        log = primary._log
        for position in range(len(log) - behind, len(log) - behind + (behind if n is None else min(n, behind))):
            self.apply(log[position])
            self._append(log[position])
        if acknowledge:
            self.acknowledge()
        primary._trim()

    def acknowledge(self) -> None:
        self.acknowledged = self.offset

    def _trim(self) -> None:
        """Forget what all followers have."""
        slowest = min(
            (follower.offset for follower in self.followers if follower.history is self.history), default=None
        )
        while self._log and (slowest is None or self.offset - len(self._log) < slowest):
            self._log.popleft()

    def confirmations(self, offset: int, *, on_disk: bool = False) -> int:
        """Replicas that have told that they have all up to `offset`."""
        return sum(
            follower.history is self.history
            and follower.acknowledged >= offset
            and (not on_disk or follower.on_disk(offset))
            for follower in self.followers
        )

    def leave(self) -> None:
        if self.primary is not None:
            self.primary.followers.remove(self)
            self.primary._trim()
            self.primary = None

    def promote(self) -> None:
        self.leave()
        self.expires_keys = True
        self.history = object()
