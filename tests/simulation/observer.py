"""What the store and each worker know, kept beside them by somebody who sees everything.

The observer watches what the servers execute and what the workers' hearts are told. What a server's data knows of a
counter (its `Ghost`) is kept in the data itself, as keys of its own: so it is lost, copied, restored and replicated
together with what it is about, and a loss excuses what it explains and nothing else. It is written after the command
that it is about, so that it never says more than the data does.

Rules that can be judged at once are judged here; checker.py judges the rest when the history is over.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import hiredis

from pythonricing.counting.lane import Numbers
from pythonricing.counting.model import (
    LEASE_RETURN_SECONDS,
    ClaimantMissing,
    ClaimantUnwanted,
    NoSuchCounter,
    StateLost,
    TooMany,
)
from pythonricing.counting.rules import decide
from pythonricing.stores.redis import store as scripts
from tests.simulation.history import Grant
from tests.simulation.leases import Leases, runs_of, total
from tests.simulation.machine import START
from tests.simulation.network import TAG
from tests.simulation.sales import LENT, OUTCOMES, RUNS, Sales

if TYPE_CHECKING:
    from pythonricing.counting.model import Batch, Run, Seen
    from tests.simulation.history import History, Operation
    from tests.simulation.machine import Machine
    from tests.simulation.network import Connection
    from tests.simulation.world import World

#: The operation that a worker's task is about.
OPERATION: ContextVar[Operation | None] = ContextVar("OPERATION", default=None)


class Ghost(NamedTuple):
    """What somebody knows of a counter.

    `era` is the last reset or deletion, and the epoch of the window since then; `change` the last change by an operator,
    both by their order of execution; `high` the highest number of the era; `limit` what the last change made it, None if that isn't known; `depth` how many
    changes led there: two that were made without knowledge of each other, because the store lost one of them, can't be
    told apart by a revision; `moved` an epoch of the store and how many numbers went into its free runs or out of them;
    `resolved` how many holds were resolved since the last reset.
    """

    era: tuple[int, int] = (0, 0)
    change: int = 0
    high: int = 0
    limit: int | None = None
    depth: int = 0
    moved: tuple[int, int] = (0, 0)
    resolved: tuple[int, int] = (0, 0)

    def merged(self, other: Ghost) -> Ghost:
        """What is known after hearing of `other` too."""
        later = self if self.era > other.era else other
        high, moved = later.high, later.moved
        if self.era == other.era:
            high, moved = max(self.high, other.high), max(self.moved, other.moved)
        newer = other if other.change >= self.change else self
        resolved = max(self.resolved, other.resolved)
        return Ghost(later.era, newer.change, high, newer.limit, max(self.depth, other.depth), moved, resolved)

    def in_window(self, state: State) -> Ghost:
        """What is known, in the window that a state shows."""
        epoch = state.epoch or 0
        if epoch <= max(state.began, self.era[1]):
            return self
        return self._replace(era=(self.era[0], epoch), high=0, moved=(epoch, 0))

    def lacks_change_of(self, other: Ghost) -> bool:
        """Whether `other` knows of a change that is not known here, nor superseded by as many others."""
        return other.change > self.change and other.depth > self.depth


NOTHING = Ghost()


#: What a change looks like: the limit that it made, the other rules, and whether it was a deletion.
Look: TypeAlias = tuple[int | None, int, str, str, bool]


class State(NamedTuple):
    """A counter's hash in a server; leases are by worker, with the world's time when they were last lent to."""

    issued: int | None
    limit: int | None
    epoch: int | None
    lost: bytes | None
    deleted: bytes | None
    revision: int | None
    moved: int = 0
    free: tuple[Run, ...] = ()
    leases: tuple[tuple[str, float, tuple[Run, ...]], ...] = ()
    base: int = 0
    #: How many numbers were given back in this epoch, and are on holds; and the other rules, see State in rules.py.
    given: int = 0
    held: int = 0
    each: int = 0
    ends: int = 0
    began: int = 0
    resolved: int = 0
    losses: int = 0
    every: str = ""
    zone: str = ""

    @property
    def taken(self) -> int | None:
        """Its count."""
        return None if self.issued is None else self.issued - total(self.free) - self.given

    def turns_into(self, after: State) -> bool:
        """Whether its window is over in the state that follows."""
        return self.ends > 0 and self.began == after.began and (self.epoch or 0) < (after.epoch or 0)

    def turned(self, after: State) -> State:
        """It in the window of the state that follows."""
        return self._replace(issued=0, epoch=after.epoch, moved=0, free=(), leases=(), given=0, held=0, ends=after.ends)

    @property
    def moves(self) -> tuple[int, int]:
        """As a Ghost has it."""
        return self.epoch or 0, self.moved

    @property
    def core(self) -> tuple[object, ...]:
        """It without leases, which may be forgotten at any time."""
        return self[:7]

    def out(self, now: float) -> int:
        """How many numbers are out on leases that may come back."""
        return sum(total(runs) for _, at, runs in self.leases if at > now - LEASE_RETURN_SECONDS)

    @property
    def look(self) -> Look:
        return (None if self.deleted else self.limit, self.each, self.every, self.zone, bool(self.deleted))


#: Of a counter that isn't there.
ABSENT = State(None, None, None, None, None, None)


def state_of(found: dict[bytes, bytes], clock: float) -> State:
    """What a counter's hash says, in a server whose clock is so far ahead of the world's."""
    lost, deleted, epoch = found.get(b"lost"), found.get(b"deleted"), found.get(b"epoch")
    free: tuple[Run, ...] = ()
    leases = []
    for field, value in found.items():
        if field[:6] != b"lease:" and field != b"free":
            continue
        begun, _, text = value.partition(b" ")
        if begun != epoch:
            continue
        if field == b"free":
            free = runs_of(text)
        else:
            at, _, text = text.partition(b" ")
            lent_at = (int(at) - START) / 1e6 - clock
            leases.append((field.removeprefix(b"lease:").decode(), lent_at, runs_of(text)))
    sale = found.get(b"sale")
    more: tuple[Any, ...] = (0, 0, 0, 0, int(epoch or 0))
    if sale is not None:
        given, held, _, _, _, each, ends, began, resolved, losses, every, zone = sale.split()[:12]
        renewal = (word.decode().removeprefix("-") for word in (every, zone))
        more = (int(given), int(held), int(each), int(ends), int(began), int(resolved), int(losses), *renewal)
    return State(
        None if b"count" not in found or (deleted and not lost) else int(found[b"count"]),
        int(found[b"limit"]) if b"limit" in found else None,
        None if epoch is None else int(epoch),
        lost,
        deleted,
        int(found[b"revision"]) if b"revision" in found else None,
        int(found.get(b"moved", 0)),
        free,
        tuple(sorted(leases)),
        int(found.get(b"base", 0)),
        *more,
    )


def shown(state: State | Seen) -> tuple[int, int]:
    return state.epoch or 0, state.revision or 0


class Call:
    """A worker's use of the store. `known` is what the worker knew when it began, `node` what the reply tells."""

    __slots__ = (
        "batch",
        "began",
        "first_uses",
        "kind",
        "known",
        "losses",
        "name",
        "node",
        "operation",
        "seen",
        "worker",
    )

    def __init__(self, worker: str, kind: str, name: str, known: Ghost, losses: int) -> None:
        self.worker = worker
        self.kind = kind
        self.name = name
        self.known = known
        self.losses = losses
        self.began = asyncio.get_running_loop().time()
        self.node: Ghost | None = None
        self.seen: Seen | None = None
        self.batch: Batch | None = None
        self.operation = OPERATION.get()
        #: The first admission to each key, as far as the store knew of it when the call began.
        self.first_uses: dict[str, tuple[tuple[int, int], int]] = {}


class Observer:
    """Sees every command that a server executes, and every answer that a store gives to a heart."""

    def __init__(self, world: World, history: History) -> None:
        self._world = world
        self._history = history
        self.primary: Machine
        #: When the store's data went back or away.
        self.lost_at: list[float] = []
        #: Whether a store's clock was stepped.
        self.clock_stepped = False
        #: Whether what is written belongs to the call that it is written in: not where writes are put together.
        self.tagged = True
        self.raises = False
        #: What each worker knows of each counter.
        self.known: dict[tuple[str, str], Ghost] = {}
        #: By counter: when it had which count and limit in the store, as long as it was so.
        self.timeline: dict[str, list[tuple[float, State]]] = {}
        #: By worker and counter: when the heart got a verdict.
        self.verdicts: dict[tuple[str, str], list[float]] = {}
        #: By worker and counter: when a verdict said that nothing is left, with its count and limit.
        self.halts: dict[tuple[str, str], list[tuple[float, tuple[int, int]]]] = {}
        #: By counter, epoch and revision of the store: what the last change that led there is known as, and its look.
        self._marks: dict[tuple[str, int, int], tuple[Ghost, Look | None]] = {}
        self._changes = 0
        self._leases = Leases(history)
        self.sales = Sales(history)
        self._reader = hiredis.Reader()
        #: By machine and counter: the hash that was looked at, under which clock, and what it says.
        self._looks: dict[tuple[Machine, str], tuple[dict[bytes, bytes] | None, float, State]] = {}
        self._nodes: list[Ghost] = [NOTHING]
        self._said: dict[tuple[str, str, bytes], Ghost] = {}
        self._replies: dict[tuple[str, str, int], list[tuple[bytes, Ghost]]] = {}
        self._batches: dict[tuple[str, str, int, int], Batch] = {}
        #: By worker and counter: when the batch that is on its way was first sent, and its sequence.
        self._sent: dict[tuple[str, str], tuple[int, float]] = {}
        self._kinds: dict[bytes, str] = {}
        for kind, script in (
            ("claim", scripts.CLAIM),
            ("put", scripts.PUT),
            ("delete", scripts.DELETE),
            ("resolve", scripts.RESOLVE),
            ("give", scripts.GIVE_BACK),
        ):
            self._kinds[script.source] = self._kinds[script.digest.encode()] = kind

    @property
    def losses(self) -> int:
        """How often the store's data went back or away."""
        return len(self.lost_at)

    def lose(self) -> None:
        """The store's data has gone back or away."""
        self.lost_at.append(self._world.time())

    # What the servers execute.

    def execute(self, machine: Machine, connection: Connection, command: list[bytes], tag: Any) -> bytes:
        verb = command[0].upper()
        if verb not in (b"EVALSHA", b"EVAL"):
            return connection.session.execute(command)
        kind = self._kinds.get(command[1])
        if kind is None:
            return connection.session.execute(command)
        name = command[3].partition(b"{")[2].partition(b"}")[0].decode()
        before, known = self.look(machine, name), self.ghost(machine, name)
        reply = connection.session.execute(command)
        if reply.startswith(b"-"):
            self._history.note(name, f"{machine.name} ← {connection.process.name} {kind}: {reply[:40]!r}")
            return reply
        after = self.look(machine, name)
        call = tag if isinstance(tag, Call) and tag.name == name and self.tagged else None
        words = self._read(reply).split()
        arguments = command[3 + int(command[2]) :]
        self._history.note(
            name,
            f"{machine.name} ← {connection.process.name} {kind} {b' '.join(arguments).decode()} → "
            f"{b' '.join(words).decode()}"
            f" [count {before.taken} → {after.taken}, limit {after.limit}]",
        )
        if self.losses and after != before and (words[0] == b"LOST" or words[-1].startswith(b"^")):
            self._history.forgotten.setdefault(name, []).append(self._world.time())
        stored, known = known, self._caught_up(name, known, before.epoch, before.revision, before.look)
        known = known.in_window(before)
        if before.turns_into(after):
            self._history.resets.setdefault(name, []).append(self._world.time())
        operation = None if call is None else call.operation
        before = self.sales.judge(machine, name, kind, before, after, words, arguments, operation)
        if call is not None and call.seen is not None and shown(call.seen) > shown(before):
            seen = call.seen
            look = (None if seen.deleted else seen.limit, seen.each, seen.every, seen.zone, seen.deleted)
            known = self._caught_up(name, known, seen.epoch, seen.revision, look)
        if words[0] == b"LOST" or kind == "claim":
            known = self._caught_up(name, known, after.epoch, after.revision, after.look)
        known = known.in_window(after)
        if (
            self.losses
            and before.epoch is not None
            and before.epoch < (after.epoch or 0)
            and self._superseded(before, after)
        ):
            known = known._replace(high=min(known.high, after.issued or 0))
        if kind == "claim":
            node = self._claimed(connection, name, call, known, before, after, words, arguments)
        elif kind in ("resolve", "give"):
            node = self._settled(name, call, known, before, after, words)
        else:
            node = self._changed(name, kind, call, known, before, after, words, arguments)
        if after.epoch is not None and node.change > known.change:
            self._marks[name, after.epoch, after.revision or 0] = node, after.look
        if node is not stored:
            self._write(machine, name, node)
        if machine is self.primary:
            self._point(name, after)
        if call is not None and words and (words[0][:1].isdigit() or words[0].rstrip(b"+") in OUTCOMES):
            call.node = self._told(call, reply, node)
        elif call is not None and words == [b"OK"]:
            call.node = node
        return reply

    def _superseded(self, before: State, after: State) -> bool:
        """Whether an operator has spoken in the later epoch of a counter; that it began in ignorance can't be seen."""
        return not before.lost and (before.revision or 0) < (after.revision or 0)

    def _began_after_less(self, call: Call, before: State) -> bool:
        """Whether a counter was begun after a deletion of an epoch that went on, because the store had lost that.

        Who began it did not know; once operators have spoken often enough in the new epoch, a revision doesn't tell.
        """
        seen, epoch, revision = call.seen, before.epoch or 0, before.revision or 0
        return (
            bool(self.losses) and seen is not None and seen.epoch == -before.base < epoch and seen.revision < revision
        )

    def _caught_up(self, name: str, known: Ghost, epoch: int | None, revision: int | None, look: Look) -> Ghost:
        """What the data knows that shows an epoch and a revision, and looks like the change that made them.

        What is known is written after what it is about, and a worker can tell the data of changes that it has lost.
        """
        mark, looked = self._marks.get((name, epoch or 0, revision or 0), (NOTHING, None))
        if look != looked or (mark.change <= known.change and mark.era <= known.era):
            return known
        high = known.high if mark.era <= known.era else 0
        newer = max(mark, known, key=lambda ghost: ghost.change)
        moved = known.moved if mark.era <= known.era else NOTHING.moved
        resolved = max(mark.resolved, known.resolved) if mark.era <= known.era else NOTHING.resolved
        return Ghost(
            max(mark.era, known.era), newer.change, high, newer.limit, max(mark.depth, known.depth), moved, resolved
        )

    def _claimed(
        self,
        connection: Connection,
        name: str,
        call: Call | None,
        known: Ghost,
        before: State,
        after: State,
        words: list[bytes],
        arguments: list[bytes],
    ) -> Ghost:
        if call is not None or not self.losses:
            sender = connection.process.name
            now = self._world.time()
            self._leases.judge(name, sender, before, after, words, arguments, self.lost_at, now)
        if not words[0].isdigit() or after == before:
            return known
        assert after.issued is not None
        assert after.taken is not None
        node, issued = known, before.issued or 0
        worker = connection.process.name
        runs, lent = runs_of(words[RUNS]), runs_of(words[LENT])
        if before.taken is None:
            node = node._replace(limit=after.limit)
        if words[-1].startswith(b"^") and call is not None:
            # Lifted to what the worker knew: from now on the store knows that too.
            if known.lacks_change_of(call.known) and call.known.limit not in (None, after.limit):
                self._history.object(
                    "an older limit wins",
                    name,
                    f"{worker} knew the limit {call.known.limit}, "
                    f"and the store was lifted to its count with {after.limit}",
                )
            node = node.merged(call.known)
        elif runs or lent:
            if issued < known.high:
                self._history.object(
                    "the store counts on from less than it knew",
                    name,
                    f"{worker} was given {runs} and lent {lent}, but the store had given up to {known.high}",
                )
            if call is not None:
                self._judge_worker(call, known, before, after)
        now = self._world.time()
        sent = now if call is None else call.began
        for first, last in runs:
            self._history.grants.append(Grant(now, worker, name, first, last, node.era, sent, scattered=len(runs) > 1))
        for first, last in lent:
            asked = now if call is None else self.sent_at(worker, name)
            self._history.grants.append(Grant(now, worker, name, first, last, node.era, asked, True, node.change))
        if (runs or lent) and node.limit is not None and after.taken > node.limit and not self.raises:
            self._history.object(
                "admitted past the limit",
                name,
                f"{worker} was given {runs} and lent {lent}, but the limit is {node.limit}",
            )
        return node._replace(high=max(node.high, after.issued), moved=max(node.moved, after.moves))

    def _settled(
        self, name: str, call: Call | None, known: Ghost, before: State, after: State, words: list[bytes]
    ) -> Ghost:
        """A hold was resolved, or numbers were given back."""
        if after == before or words[0] in (b"LOST", b"OVER", b"LATE", b"MISSING"):
            return known
        if words[0] in (b"NEVER", b"LEASED"):  # lifted to what the worker knew, and nothing else
            return known if call is None or after.losses == before.losses else known.merged(call.known)
        self._judge_word(call)
        if words[-1].startswith(b"^") and call is not None:
            known = known.merged(call.known)
        elif call is not None:
            self._judge_worker(call, known, before, after)
        resolved = max(known.resolved, (known.era[0], after.resolved))
        high, moved = max(known.high, after.issued or 0), max(known.moved, after.moves)
        return known._replace(high=high, moved=moved, resolved=resolved)

    def _judge_word(self, call: Call | None) -> None:
        operation = None if call is None else call.operation
        if operation is not None and operation.decided is not None and not self.clock_stepped:
            self._history.object(
                "an operator's command has an effect after its answer",
                operation.name,
                f"answered {operation.decision} at {operation.decided:.6f}: {operation}",
            )

    def _judge_worker(self, call: Call, known: Ghost, before: State, after: State) -> None:
        """A worker that knows more than the store has must notice."""
        worker, count = call.known, before.issued or 0
        if self._began_after_less(call, before):
            return
        fewer = worker.era == known.era and before.moves < worker.moved
        if (worker.era >= known.era and count < worker.high) or fewer:
            self._history.object(
                "a worker admits from less than it has seen",
                call.name,
                f"{call.worker} was given something of {before}, but it has seen {worker}",
            )
        elif worker.era[0] == known.era[0] and worker.resolved > (known.era[0], before.resolved):
            self._history.object(
                "a worker goes on where a resolution that it has seen is lost",
                call.name,
                f"{call.worker} has seen {worker}: {before}",
            )
        elif known.lacks_change_of(worker) and not (
            worker.change == worker.era[0] and not worker.high and not known.high
        ):
            self._history.object(
                "a worker admits from a store that lost a change it has seen",
                call.name,
                f"{call.worker} was given up to {after.issued} under the limit {after.limit}, but it knows "
                f"{worker}, and the store {known}",
            )

    def _changed(
        self,
        name: str,
        kind: str,
        call: Call | None,
        known: Ghost,
        before: State,
        after: State,
        words: list[bytes],
        arguments: list[bytes],
    ) -> Ghost:
        done = words[0][:1].isdigit() or words[0] == b"OK"
        if not done or before.core == after.core:
            return known
        self._judge_word(call)
        operation = None if call is None else call.operation
        if operation is not None and operation.kind == "put" and operation.limit != after.limit:
            self._history.object("a change makes the limit", name, f"{operation} made it {after.limit}")
        self._changes += 1
        change = self._changes
        if before.epoch != after.epoch or kind == "delete":
            self._history.resets.setdefault(name, []).append(self._world.time())
        if kind == "delete" or b"restart" in arguments:
            if after.taken:
                self._history.object("a reset counts from 0", name, f"the count is {after.taken}")
            depth = max(known.depth, 0 if call is None else call.known.depth)
            return Ghost((change, 0), change, 0, after.limit, depth + 1)
        seen = None if call is None else call.seen
        first = (
            not self.raises and not before.lost and not before.deleted and before.epoch in (None, seen and seen.epoch)
        )
        if seen is not None and first and not seen.deleted and seen.issued > (before.issued or 0):
            self._history.object(
                "a change that is the first to notice a loss ends none", name, f"its worker had seen {seen}"
            )
        if words[-1].startswith(b"^") and call is not None:
            known = known.merged(call.known)
        count = after.issued or 0
        if count < known.high:
            self._history.object(
                "a change keeps the count", name, f"the count is {count}, but the store had given up to {known.high}"
            )
        if call is not None and call.kind == "put" and call.known.era >= known.era and count < call.known.high:
            self._history.object(
                "a change counts on from what its worker has seen",
                name,
                f"{call.worker} has seen {call.known.high}, and the count is {count}",
            )
        high, moved = max(known.high, count), max(known.moved, after.moves)
        return known._replace(change=change, high=high, limit=after.limit, depth=known.depth + 1, moved=moved)

    def _told(self, call: Call, reply: bytes, node: Ghost) -> Ghost:
        """What a reply tells: a receipt tells what was so when it was written."""
        if call.batch is None:
            if call.kind in ("put", "give_back"):
                return self._said.setdefault((call.worker, call.name, reply), node)
            return node
        replies = self._replies.setdefault((call.worker, call.name, call.batch.sequence), [])
        for earlier, then in replies:
            if earlier == reply:
                return then
        replies.append((reply, node))
        return node

    # What the data of a server is.

    def look(self, machine: Machine, name: str) -> State:
        found = machine.server.value(b"pythonricing:{%b}" % name.encode())
        looked, clock, state = self._looks.get((machine, name), (None, 0.0, ABSENT))
        if found is not looked or clock != machine.clock:
            state = ABSENT if found is None else state_of(found, machine.clock)
            self._looks[machine, name] = found, machine.clock, state
        return state

    def ghost(self, machine: Machine, name: str) -> Ghost:
        found = machine.server.value(b"ghost:%b" % name.encode())
        return NOTHING if found is None else self._nodes[int(found)]

    def _write(self, machine: Machine, name: str, node: Ghost) -> None:
        self._nodes.append(node)
        self._set(machine, b"ghost:%b" % name.encode(), b"%d" % (len(self._nodes) - 1))

    def _set(self, machine: Machine, key: bytes, value: bytes) -> None:
        """Keep something in the data itself; like all else, it is refused where the server is full."""
        machine.eye.execute([b"SET", key, value])

    def _read(self, reply: bytes) -> Any:
        self._reader.feed(reply)
        return self._reader.gets()

    def _point(self, name: str, state: State) -> None:
        line = self.timeline.setdefault(name, [])
        if not line or line[-1][1] != state:
            line.append((self._world.time(), state))

    def look_again(self) -> None:
        """Something happened to the data of the store."""
        for name in self.timeline:
            self._point(name, self.look(self.primary, name))

    # What the hearts are told.

    def begin(self, worker: str, kind: str, what: Any) -> Call:
        name = what if isinstance(what, str) else what.name
        call = Call(worker, kind, name, self.known.get((worker, name), NOTHING), self.losses)
        if kind == "claim":
            call.batch, call.seen = what, what.seen
            sequence, _ = self._sent.get((worker, name), (None, 0.0))
            if sequence != what.sequence:
                self._sent[worker, name] = (what.sequence, self._world.time())
            self._batches[worker, name, what.sequence, what.attempt] = what
            for key in filter(None, what.keys or ()):
                found = self.primary.server.value(f"ghost:{name}:key:{key}".encode())
                if found is not None:
                    reset, window, count = map(int, found.split())
                    call.first_uses[key] = (reset, window), count
        return call

    def knows(self, worker: str, name: str) -> int:
        """The last change of a counter that a worker knows of."""
        return self.known.get((worker, name), NOTHING).change

    def sent_at(self, worker: str, name: str) -> float:
        return self._sent[worker, name][1]

    def answered(self, call: Call, result: Any) -> None:
        """The store's answer has reached the heart."""
        if call.node is not None and call.kind != "configure":
            have = self.known.get((call.worker, call.name), NOTHING)
            self.known[call.worker, call.name] = have.merged(call.node)
        told = next(
            (each for each in (result if isinstance(result, tuple) else (result,)) if hasattr(each, "expired")), None
        )
        if told is not None and told.expired:
            whose = (call.worker, call.name)
            self._history.told_expired[whose] = self._history.told_expired.get(whose, 0) + told.expired
        if call.kind == "resolve" and told is not None and told.settled:
            whose = (call.worker, call.name)
            self._history.told_resolved[whose] = self._history.told_resolved.get(whose, 0) + 1
        if call.kind == "claim":
            self._judge_verdict(call, result)

    def failed(self, call: Call, error: Exception) -> None:
        """The store's error has reached the heart."""
        if isinstance(error, NoSuchCounter):
            self.known.pop((call.worker, call.name), None)
        elif isinstance(error, StateLost):
            self._history.heard.setdefault((call.worker, call.name), []).append(self._world.time())
            if not self.losses:
                self._history.object(
                    "a loss is none", call.name, f"{call.worker} was told of one, but nothing was lost"
                )
            elif call.losses == self.losses:
                self._spoken(call)

    def broken(self, worker: str) -> None:
        """A worker hears that a connection is gone."""
        self._history.breaks.setdefault(worker, []).append(self._world.time())

    def _spoken(self, call: Call) -> None:
        """The store was told what a worker has seen, and owns to have lost it."""
        seen = call.seen
        stored = self.ghost(self.primary, call.name)
        if seen is not None and seen.issued <= call.known.high and call.known.era >= stored.era:
            high = max(seen.issued, stored.high) if call.known.era == stored.era else seen.issued
            self._write(self.primary, call.name, stored._replace(era=call.known.era, high=high))

    def _judge_verdict(self, call: Call, verdict: Any) -> None:
        assert call.batch is not None
        self.verdicts.setdefault((call.worker, call.name), []).append(self._world.time())
        batch = self._batches.get((call.worker, call.name, call.batch.sequence, verdict.attempt))
        if batch is None:
            self._history.object("a receipt names one of the compositions", call.name, f"{verdict} for {call.batch}")
            return
        count, replays, got = verdict.before, iter(verdict.replays), Numbers(verdict.runs)
        admissions: list[tuple[str, int, bool]] = []
        nothing: list[None] = [None] * len(batch.sizes)
        claims = zip(batch.sizes, batch.keys or nothing, batch.wishes or nothing, strict=True)
        for place, (size, key, wish) in enumerate(claims):
            replay = None if key is None else next(replays, None)
            if replay is not None:
                if key is not None and replay.admitted:
                    admissions.append((key, replay.count, True))
                continue
            try:
                answer = decide(
                    count, verdict.limit, size, verdict.most, None, wish, verdict.each, place in verdict.capped
                )
            except (TooMany, ClaimantMissing, ClaimantUnwanted):
                continue
            if answer.admitted:
                count = answer.request_count
                last = got.answer(size, verdict.limit).request_count
                if key is not None:
                    admissions.append((key, last, False))
        if count >= verdict.limit and not verdict.out:
            halts = self.halts.setdefault((call.worker, call.name), [])
            halts.append((self._world.time(), (count, verdict.limit)))
        if call.losses == self.losses and call.node is not None:
            for key, last, replayed in admissions:
                self._judge_key(call, call.node, key, last, replayed)

    def _judge_key(self, call: Call, node: Ghost, key: str, last: int, replayed: bool) -> None:
        """A key's admission is the first one since the last reset that the store knows of, in whichever window."""
        era, first = call.first_uses.get(key, ((-1, 0), 0))
        if era[0] < node.era[0]:
            self._set(self.primary, f"ghost:{call.name}:key:{key}".encode(), b"%d %d %d" % (*node.era, last))
            if replayed and first == last and era[0] >= 0 and not self.losses:
                given = any(
                    grant.era[0] == node.era[0] and grant.low <= last <= grant.high for grant in self._history.grants
                )
                if not given:
                    self._history.object("a reset forgets keys", call.name, f"key {key} got {last} of before it again")
        elif era[0] == node.era[0] and first != last:
            self._history.object("one key, one admission", call.name, f"key {key} got {first} first, and now {last}")


class Watched:
    """A worker's store, with the observer told of what it is asked and what it answers."""

    def __init__(self, store: Any, worker: str, observer: Observer) -> None:
        self.__dict__.update(_store=store, _worker=worker, _observer=observer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "on_disconnect":
            tell = value

            def value() -> None:
                self._observer.broken(self._worker)
                tell()

        setattr(self._store, name, value)

    async def _watch(self, kind: str, what: Any, *arguments: Any, **options: Any) -> Any:
        call = self._observer.begin(self._worker, "configure" if "configure" in arguments else kind, what)
        TAG.set(call)
        if arguments:
            call.seen = getattr(arguments[0], "seen", arguments[0])
        try:
            result = await getattr(self._store, kind)(what, *arguments, **options)
        except Exception as error:
            self._observer.failed(call, error)
            raise
        self._observer.answered(call, result)
        return result

    async def claim(self, batch: Batch) -> Any:
        return await self._watch("claim", batch)

    async def read(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await self._watch("read", name, *arguments, **options)

    async def put(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await self._watch("put", name, *arguments, **options)

    async def delete(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await self._watch("delete", name, *arguments, **options)

    async def resolve(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await self._watch("resolve", name, *arguments, **options)

    async def give_back(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await self._watch("give_back", name, *arguments, **options)
