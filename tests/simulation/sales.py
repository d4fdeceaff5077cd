"""What holds, give-backs, claimants and windows are held to at each command that a server executes.

What the data of a server should say of them (its `Sale`) is kept beside what it is about and in the same step: so it is
lost, copied, restored and replicated with it. It is worked out from what was asked and what was replied, number by
number, and never from what the data has, but for which of several holds a server has found to be over.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from pythonricing.counting.model import LEASE_RETURN_SECONDS
from tests.simulation.leases import numbers as numbers_of
from tests.simulation.leases import runs_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.simulation.history import History, Operation
    from tests.simulation.machine import Machine
    from tests.simulation.observer import State

#: Where a batch's arguments have whether it has wishes, and its claims; and its reply what it says of sales.
WISHES, CLAIMS, SALE = 19, 20, 11
#: Where the arguments of a word have what it is about.
ID, ACTION, NUMBER, GIVEN_BACK = 11, 12, 13, 12
#: Numbers of a claim that are noted somewhere, at most, and holds that a command looks at.
MAX_NUMBERS, MAX_DUE = 1024, 128
#: Microseconds for which a lease is used.
LEASE = 100_000
NOTHING = (b"LOST", b"LATE", b"OVER", b"MISSING")
OUTCOMES = (b"confirmed", b"released", b"expired", b"held", b"none")


class Held(NamedTuple):
    """A hold, its numbers in the order in which they were given; once resolved, those that are `kept`."""

    numbers: tuple[int, ...]
    epoch: int
    expires: int
    outcome: bytes = b"held"
    kept: tuple[int, ...] = ()


class Sale(NamedTuple):
    """What a server's data should say of a counter. Its parts are never changed in place."""

    holds: dict[bytes, Held]
    back: frozenset[int]
    #: Whose the numbers are, and how many each has that were not given back.
    owners: dict[int, bytes]
    shares: dict[bytes, int]

    def given_back(self, numbers: set[int]) -> Sale:
        new = numbers - self.back
        shares = dict(self.shares)
        for number in new:
            if number in self.owners:
                shares[self.owners[number]] -= 1
        return self._replace(back=self.back | new, shares=shares)

    def held(self, epoch: int) -> int:
        """How many numbers of an epoch are on holds."""
        return sum(len(hold.numbers) for hold in self.holds.values() if hold.outcome == b"held" and hold.epoch == epoch)


EMPTY = Sale({}, frozenset(), {}, {})


class Asked(NamedTuple):
    """A claim of a batch."""

    place: int
    size: int
    keyed: bool
    hold: bytes
    seconds: int
    claimant: bytes


def asked(arguments: Sequence[bytes]) -> Iterator[Asked]:
    """The claims of a batch, one by one."""
    index, place = CLAIMS, 0
    while index < len(arguments):
        times, size = int(arguments[index]), int(arguments[index + 1])
        index += 2
        hold, seconds, claimant = b"", b"0", b""
        if not times:
            hold, seconds, claimant = arguments[index : index + 3]
            index += 3
        for _ in range(max(1, times)):
            yield Asked(place, abs(size), size < 0, hold, int(seconds), claimant)
            place += 1


@lru_cache(4096)
def window(every: str, zone: str, second: int) -> tuple[int, int]:
    """Begin and end, in seconds, of the window that contains a second: of the calendar, where the date changes."""
    if every[:-1].isdigit():
        length = int(every[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[every[-1]]
        return second - second % length, second - second % length + length
    where = ZoneInfo(zone) if zone else UTC

    def key(at: int) -> tuple[int, ...]:
        date = datetime.fromtimestamp(at, where).date()
        return {"day": tuple(date.timetuple()[:3]), "week": date.isocalendar()[:2]}.get(every, (date.year, date.month))

    def last(inside: int, outside: int) -> int:
        """The last second towards `outside` that is in the same window."""
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if key(middle) == key(second) else (inside, middle)
        return inside

    return last(second, second - 32 * 86400), last(second, second + 32 * 86400) + 1


class Sales:
    """Judges what a command did to the holds, the given back numbers, the shares and the window of a counter."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._sales = [EMPTY]
        #: By counter and id: each hold as it was made.
        self.made: dict[tuple[str, str], list[Held]] = {}
        self._expiries: dict[str, list[int]] = {}

    def of(self, machine: Machine, name: str) -> Sale:
        found = machine.server.value(b"sale:%b" % name.encode())
        return EMPTY if found is None else self._sales[int(found)]

    def judge(
        self,
        machine: Machine,
        name: str,
        kind: str,
        before: State,
        after: State,
        words: Sequence[bytes],
        arguments: Sequence[bytes],
        operation: Operation | None,
    ) -> State:
        """After each command. Returns the state before it, but with what time did: renewed, and without what expired."""
        if after == before:  # nothing was executed, or it came from a receipt
            return before
        sale = stored = self.of(machine, name)
        now = machine.server.now()
        lost = words[0] == b"LOST" or words[-1].startswith(b"^")
        if words[0] in (b"NEVER", b"LEASED", b"MISSING"):  # which don't tell
            lost = after.losses > before.losses
        if before.turns_into(after):
            self._judge_turn(name, before, after, now)
            given = (
                numbers_of([*runs_of(words[RUNS]), *runs_of(words[LENT])])
                if kind == "claim" and len(words) > SALE
                else ()
            )
            if (after.issued or 0) > len(given) and not lost:
                self._history.object("a window begins at its time", name, f"but not at 0: {after}")
            before = before.turned(after)
            sale = sale._replace(back=EMPTY.back, owners=EMPTY.owners, shares=EMPTY.shares)
        if after.began != before.began or (kind == "delete" and words[0].isdigit()):
            sale = EMPTY
        elif after.epoch != before.epoch:
            sale = EMPTY._replace(holds={id: hold for id, hold in sale.holds.items() if hold.outcome != b"held"})
        elif lost:
            sale = sale._replace(holds={id: hold for id, hold in sale.holds.items() if hold.outcome != b"held"})
        self._judge_rules(name, kind, before, after, now)
        executed = words[0][:1].isdigit() or (kind in ("resolve", "give") and words[0] not in NOTHING)
        if executed and after != before and not after.deleted:
            if 0 < after.ends <= now and not after.lost:
                self._history.object("a window begins at its time", name, f"it is {now}, and it goes on: {after}")
            sale, before = self._expire(machine, name, sale, before, after, now)
            if after != before or kind == "resolve":
                if kind == "claim":
                    sale = self._claim(machine, name, sale, before, after, words, arguments, now)
                elif kind == "resolve":
                    sale = self._resolve(name, sale, after, words, arguments)
                elif kind == "give" and words[0].isdigit():
                    sale = self._give_back(name, sale, before, after, words, arguments, operation)
        if (after.given, after.held) != (len(sale.back), 0 if after.lost else sale.held(after.epoch or 0)):
            self._history.object(
                "what is held and what was given back adds up",
                name,
                f"it should be {sale.held(after.epoch or 0)} and {len(sale.back)}: {after}",
            )
        if sale is not stored:
            self._sales.append(sale)
            machine.server.amend(b"sale:%b" % name.encode(), b"%d" % (len(self._sales) - 1))
        return before

    def _judge_turn(self, name: str, before: State, after: State, now: int) -> None:
        begins, ends = (second * 1_000_000 for second in window(before.every, before.zone, now // 1_000_000))
        assert before.epoch is not None
        same = (before.every, before.zone) == (after.every, after.zone)
        if now < before.ends or after.epoch != max(begins, before.epoch + 1) or (same and after.ends != ends):
            self._history.object(
                "a window begins at its time", name, f"at {now}, where it is {begins} to {ends}: {before}, {after}"
            )

    def _judge_rules(self, name: str, kind: str, before: State, after: State, now: int) -> None:
        if kind == "put" and after.every and not after.lost:
            same = (before.epoch, before.every, before.zone) == (after.epoch, after.every, after.zone)
            if (
                not same
                and after.revision != before.revision
                and after.ends != window(after.every, after.zone, now // 1_000_000)[1] * 1_000_000
            ):
                self._history.object("a window begins at its time", name, f"put at {now}: {after}")

    def _expire(
        self, machine: Machine, name: str, sale: Sale, before: State, after: State, now: int
    ) -> tuple[Sale, State]:
        """The holds that are over by the server's clock go back, as many as a command looks at."""
        over = [id for id, hold in sale.holds.items() if hold.outcome == b"held" and hold.expires * 1_000_000 <= now]
        if not over:
            return sale, before
        data = machine.server.value(b"pythonricing:{%b}" % name.encode()) or {}
        holds, done = dict(sale.holds), 0
        for id in over:
            if data.get(b"hold:" + id, b"").startswith(b"held"):
                continue
            hold = holds[id] = holds[id]._replace(outcome=b"expired")
            done += 1
            before = before._replace(moved=before.moved + len(hold.numbers))
            if hold.epoch == after.epoch:
                had = len(sale.back)
                sale = sale.given_back(set(hold.numbers))
                before = before._replace(
                    given=before.given + len(sale.back) - had, held=before.held - len(hold.numbers)
                )
        # Those that were resolved before, or forgotten, are looked at then as well.
        if done < len(over) and sum(expires * 1_000_000 <= now for expires in self._expiries[name]) <= MAX_DUE:
            self._history.object("a hold is over when its time is", name, f"{len(over) - done} are left at {now}")
        return sale._replace(holds=holds), before

    def _claim(
        self,
        machine: Machine,
        name: str,
        sale: Sale,
        before: State,
        after: State,
        words: Sequence[bytes],
        arguments: Sequence[bytes],
        now: int,
    ) -> Sale:
        if len(words) > LENT and words[LENT] != b"-" and 0 < after.ends <= now + LEASE:
            self._history.object("a lease ends before its window does", name, f"lent {words[LENT]!r} at {now}: {after}")
        if arguments[WISHES] != b"1":
            return sale
        limit, most, count = int(words[3]), int(words[4]), int(words[5])
        numbers = iter([number for first, last in runs_of(words[RUNS]) for number in range(first, last + 1)])
        places = words[SALE].rpartition(b":")[2]
        capped = {int(place) for place in places.split(b",")} if places not in (b"", b"-") else set()
        records = iter(words[SALE + 1 :])
        holds, owners, shares = dict(sale.holds), dict(sale.owners), dict(sale.shares)
        for claim in asked(arguments):
            if claim.keyed and next(records) != b"-":
                continue
            wish = bool(claim.hold or claim.claimant)
            if bool(claim.claimant) != bool(after.each) or claim.size > (most or claim.size):
                continue
            if wish and claim.size > MAX_NUMBERS:
                continue
            above = bool(claim.claimant) and shares.get(claim.claimant, 0) + claim.size > after.each
            if above != (claim.place in capped):
                self._history.object(
                    "never more than each for one claimant",
                    name,
                    f"{claim} has {shares.get(claim.claimant, 0)} of {after.each}, and {'not ' * above}refused for that",
                )
            if claim.place in capped or count + claim.size > limit:
                continue
            count += claim.size
            got = tuple(next(numbers) for _ in range(claim.size))
            if claim.claimant:
                owners |= dict.fromkeys(got, claim.claimant)
                shares[claim.claimant] = shares.get(claim.claimant, 0) + claim.size
            if claim.hold:
                assert after.epoch is not None
                expires = now // 1_000_000 + claim.seconds + 1
                hold = holds[claim.hold] = Held(got, after.epoch, expires)
                self.made.setdefault((name, claim.hold.decode()), []).append(hold)
                self._expiries.setdefault(name, []).append(expires)
        sale = sale._replace(holds=holds, owners=owners, shares=shares)
        self._judge_shares(machine, name, sale, [claim.claimant for claim in asked(arguments) if claim.claimant])
        return sale

    def _judge_shares(self, machine: Machine, name: str, sale: Sale, claimants: Sequence[bytes]) -> None:
        data = machine.server.value(b"pythonricing:{%b}" % name.encode()) or {}
        for claimant in claimants:
            share = int(data.get(b"for:" + claimant, 0))
            if share != sale.shares.get(claimant, 0):
                self._history.object(
                    "a share is what its claimant has",
                    name,
                    f"{claimant!r} has {sale.shares.get(claimant, 0)}: {share}",
                )

    def _resolve(self, name: str, sale: Sale, after: State, words: Sequence[bytes], arguments: Sequence[bytes]) -> Sale:
        id, action, number = arguments[ID], arguments[ACTION], arguments[NUMBER]
        hold = sale.holds.get(id)
        settled = hold is not None and hold.outcome == b"held"
        outcome, kept = words[0], tuple(n for first, last in runs_of(words[2]) for n in range(first, last + 1))
        if hold is None:
            said: tuple[object, ...] = (b"none", ())
        elif hold.outcome != b"held":
            said = (hold.outcome, hold.kept)
        else:
            size = (int(number) if number else len(hold.numbers)) if action == b"confirm" else 0
            if size > len(hold.numbers):
                said = (b"held", ())
            else:
                hold = hold._replace(
                    outcome=b"confirmed" if action == b"confirm" else b"released", kept=hold.numbers[:size]
                )
                said = (hold.outcome, hold.kept)
                sale = sale._replace(holds={**sale.holds, id: hold})
                if hold.epoch == after.epoch:
                    sale = sale.given_back(set(hold.numbers) - set(hold.kept))
        if settled and hold is not None and said[0] != b"held":  # it tells that it was resolved by this
            said = (hold.outcome + b"+", hold.kept)
        if (outcome, kept) != said:
            self._history.object(
                "a hold is resolved once, and then says the same",
                name,
                f"{id!r} is {said}, and now {outcome!r}, {kept}",
            )
        return sale

    def _give_back(
        self,
        name: str,
        sale: Sale,
        before: State,
        after: State,
        words: Sequence[bytes],
        arguments: Sequence[bytes],
        operation: Operation | None,
    ) -> Sale:
        wanted = numbers_of(runs_of(arguments[GIVEN_BACK]))
        if words[-1].startswith(b"^"):  # a loss leaves nothing free or leased
            before = before._replace(free=(), leases=())
        since = self._history.now - LEASE_RETURN_SECONDS
        out = [runs for _, at, runs in before.leases if at > since]
        nobodys = numbers_of([*before.free, *(run for runs in out for run in runs)])
        strange = {number for number in wanted if number > (after.issued or 0) or number in nobodys}
        if strange:
            self._history.object("only what somebody had is given back", name, f"{sorted(strange)[:9]} of {before}")
        leased = wanted & numbers_of([run for _, _, runs in before.leases for run in runs])
        if leased:
            self._history.cut.setdefault(name, []).append((self._history.now, leased))
        given = len(wanted - sale.back)
        if int(words[0]) != given:
            self._history.object("each number is given back once", name, f"{given} were new, said: {words[0]!r}")
        if operation is not None:
            operation.effect += given
        holds = dict(sale.holds)
        for id, hold in sale.holds.items():
            if hold.outcome == b"held" and hold.epoch == after.epoch and not wanted.isdisjoint(hold.numbers):
                left = tuple(number for number in hold.numbers if number not in wanted)
                holds[id] = hold._replace(numbers=left, outcome=b"held" if left else b"released")
                self.made[name, id.decode()].append(holds[id])
        return sale._replace(holds=holds).given_back(wanted)


#: The words of a claim's reply that are what its claims got, and what is lent.
RUNS, LENT = 9, 10
