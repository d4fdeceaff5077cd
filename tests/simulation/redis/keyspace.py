"""Keys with values and expiry, and what every command changes of them.

A stored value is never changed in place but replaced. So a backup, the log of changes and a replica can share it, and
both to undo a change and to repeat it elsewhere is one assignment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tests.simulation.redis.replies import WRONG_TYPE, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable


class Hash(dict[bytes, bytes]):
    """Fields and their values."""


class Members(dict[bytes, None]):
    """A set, in the order of insertion: the order of Python's sets depends on the process."""


class Scores(dict[bytes, float]):
    """A sorted set: members and their scores."""

    def ordered(self) -> list[tuple[float, bytes]]:
        return sorted((score, member) for member, score in self.items())


Value: TypeAlias = bytes | Hash | Members | Scores
#: A value and when it expires, in milliseconds; 0 for never.
Entry: TypeAlias = tuple[Value, int]
#: Number of the database, key, what it was and what it is.
Change: TypeAlias = tuple[int, bytes, Entry | None, Entry | None]
#: What one command has changed, or one script: all of it or nothing reaches a disk or a replica.
Unit: TypeAlias = list[Change]

DATABASES = 16

TYPE_NAMES: dict[type, bytes] = {bytes: b"string", Hash: b"hash", Members: b"set", Scores: b"zset"}

T = TypeVar("T", bytes, Hash, Members, Scores)


class Keyspace:
    """The databases, as the command that is being executed sees them."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.databases: list[dict[bytes, Entry]] = [{} for _ in range(DATABASES)]
        self.index = 0  # of the database in use
        self.entries = self.databases[0]
        self.milliseconds = 0  # the time for this command: it stands still within a script
        self.changes: Unit = []
        self.expires_keys = True  # a replica waits for its primary to do so

    def select(self, index: int) -> None:
        self.index = index
        self.entries = self.databases[index]

    def entry(self, key: bytes) -> Entry | None:
        entry = self.entries.get(key)
        if entry is not None and 0 < entry[1] < self.milliseconds:
            if self.expires_keys:
                self.put(key, None)
            return None
        return entry

    def find(self, key: bytes, kind: type[T]) -> T | None:
        """The value of a key. Raises ReplyError if it is of another kind."""
        entry = self.entries.get(key)
        if entry is None or (entry[1] and (entry := self.entry(key)) is None):
            return None
        if type(entry[0]) is not kind:
            raise ReplyError(WRONG_TYPE)
        return entry[0]

    def read(self, key: bytes, kind: type[T]) -> T:
        """The value of a key, empty if there is none. Raises ReplyError if it is of another kind."""
        return self.find(key, kind) or kind()

    def put(self, key: bytes, entry: Entry | None) -> None:
        entries = self.entries
        self.changes.append((self.index, key, entries.get(key), entry))
        if entry is None:
            entries.pop(key, None)
        else:
            entries[key] = entry

    def update(self, key: bytes, value: Value) -> None:
        """Put a value and keep the expiry; an empty collection is gone."""
        if not value and type(value) is not bytes:
            self.put(key, None)
        else:
            entry = self.entries.get(key)
            self.put(key, (value, entry[1] if entry else 0))

    def empty(self, index: int) -> None:
        self.changes += [(index, key, entry, None) for key, entry in self.databases[index].items()]
        self.databases[index].clear()

    def contents(self, database: int = 0) -> dict[bytes, Entry]:
        """What a client could read by now."""
        now = self.now() // 1000
        return {key: entry for key, entry in self.databases[database].items() if not 0 < entry[1] < now}

    def value(self, key: bytes, database: int = 0) -> Any:
        """One of these values, None if there is none; it is the same object for as long as nobody writes to its key."""
        entry = self.databases[database].get(key)
        return None if entry is None or 0 < entry[1] < self.now() // 1000 else entry[0]

    def apply(self, unit: Unit) -> None:
        for index, key, _, entry in unit:
            self._set(index, key, entry)

    def undo(self, unit: Unit) -> None:
        for index, key, entry, _ in reversed(unit):
            self._set(index, key, entry)

    def _set(self, index: int, key: bytes, entry: Entry | None) -> None:
        if entry is None:
            self.databases[index].pop(key, None)
        else:
            self.databases[index][key] = entry
