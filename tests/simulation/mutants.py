"""Small changes of the service that each break one mechanism, to see that the simulation notices.

A mutant is a piece of source text that is replaced: in a method, or in a script. One whose text is not there any more
raises LookupError: it has to follow the code.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from pythonricing.counting.counters import Counters
from pythonricing.counting.lane import Lane
from pythonricing.counting.lease import Lease
from pythonricing.stores.link import Link
from pythonricing.stores.redis import store
from pythonricing.stores.redis.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator


class Mutant(NamedTuple):
    """`where` is a script, or a class with the name of its method."""

    where: store.Script | tuple[type, str]
    old: str
    new: str


TIMED_OUT = 'claim.future.set_exception(StoreUnavailable("the store did not answer in time"))'
WRITE_RECEIPT = "redis.call('SET', KEYS[2], ARGV[11] .. ' ' .. reply, 'EX', ARGV[13])"
REVISED = """issued, moved, revision = math.max(before, seen_issued), math.max(moved, seen_moved), seen_revision
      limit, most, deleted = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'"""

MUTANTS = {
    # Receipts
    "sequence read again for a repeat": Mutant(
        (Lane, "_send"), "                sequence,", "                worker.sequence,"
    ),
    "repeat takes a new sequence": Mutant(
        (Lane, "_send"), "failures += 1", "failures += 1; worker.sequence = sequence = worker.sequence + 1"
    ),
    "receipt not checked": Mutant(store.CLAIM, "if receipt then", "if receipt and false then"),
    "receipt not written": Mutant(store.CLAIM, WRITE_RECEIPT, ""),
    "receipt expires early": Mutant(store.CLAIM, WRITE_RECEIPT, WRITE_RECEIPT.replace("ARGV[13]", "1")),
    "receipt of a later batch ignored": Mutant(
        store.CLAIM, "elseif tonumber(last) > sequence then", "elseif false then"
    ),
    "receipt of an ordinary batch not checked": Mutant(
        store.CLAIM, "and (not receipt or tonumber(string.match(receipt, '^%d+')) < tonumber(ARGV[11]))", ""
    ),
    "ordinary batch on less than was seen": Mutant(
        store.CLAIM, "and before >= tonumber(ARGV[3]) and tonumber(moved) >= tonumber(ARGV[7])", ""
    ),
    "ordinary batch on a lost counter": Mutant(store.CLAIM, "not (stored[7] or", "not ("),
    "composition of a receipt ignored": Mutant(
        (Lane, "_send"), "return compositions[verdict.attempt], verdict", "return compositions[-1], verdict"
    ),
    "composition changed under its number": Mutant(
        (Lane, "_send"), "compositions.append(left)", "compositions[-1] = left"
    ),
    "another batch while one is on its way": Mutant((Lane, "_start"), "if self.task is None:", "if True:"),
    # What was seen
    "seen not sent": Mutant((Lane, "known"), "return self._seen", "return None"),
    "count not compared": Mutant(store.CLAIM, "(issued < seen_issued or moved < seen_moved)", "moved < seen_moved"),
    "revision not compared": Mutant(store.CLAIM, "elseif revision < seen_revision or", "elseif"),
    "older epoch believed": Mutant(store.CLAIM, "if not epoch or epoch < seen_epoch then", "if not epoch then"),
    "absence believed": Mutant(
        store.CLAIM, "if not epoch or epoch < seen_epoch then", "if epoch and epoch < seen_epoch then"
    ),
    "another epoch believed": Mutant(
        store.CLAIM,
        "if (told_of or seen_issued <= math.max(base, 0)) and not (seen_revision > 0 and revision == 0) then",
        "if true then",
    ),
    "deletion that knew of less believed": Mutant(
        store.CLAIM, "seen_epoch == -base and seen_revision < revision", "seen_epoch == -base"
    ),
    "epoch begun in ignorance taken for a reset": Mutant(store.CLAIM, "(lost or revision >= seen_revision)", "lost"),
    "a loss not marked": Mutant(store.CLAIM, "lost = not raise\n      save()", "lost = not raise"),
    "tombstone forgotten": Mutant(store.DELETE, "lost, deleted = false, true", "lost, deleted, base = false, true, 0"),
    "raise does not lift": Mutant(
        store.CLAIM,
        "issued, moved = math.max(issued, seen_issued), math.max(moved, seen_moved)\n    else",
        "moved = seen_moved\n    else",
    ),
    "the older limit wins": Mutant(store.CLAIM, REVISED, REVISED.splitlines()[0]),
    # Limits
    "one more admitted": Mutant(
        store.CLAIM,
        "local admitted, number, several = taken + size <= limit,",
        "local admitted, number, several = taken + size <= limit + 1,",
    ),
    "plain claims rounded up": Mutant(
        store.CLAIM, "math.floor((limit - taken) / size)", "math.ceil((limit - taken) / size)"
    ),
    "a count not written": Mutant(store.CLAIM, "if issued > known_issued then", "if issued > known_issued + 1 then"),
    # Keys
    "record of another epoch believed": Mutant(
        store.CLAIM, "if record and string.match(record, '^%d+') == digits(epoch) then", "if record then"
    ),
    "record not believed": Mutant(
        store.CLAIM, "if record and string.match(record, '^%d+') == digits(epoch) then", "if false then"
    ),
    "record expires early": Mutant(store.CLAIM, "'EX', admitted and ARGV[14] or ARGV[15])", "'EX', 1)"),
    "replays in the wrong order": Mutant((Lane, "_settle"), "iter(verdict.replays)", "iter(verdict.replays[::-1])"),
    # Operators
    "change does not write the limit": Mutant(
        store.PUT, "lost, limit, most, revision = false, new_limit,", "lost, limit, most, revision = false, limit,"
    ),
    "change is no revision": Mutant(
        store.PUT, "new_limit, new_most, revision + 1\n", "new_limit, new_most, revision\n"
    ),
    "change begins at 0": Mutant(store.PUT, "elseif lost or new_limit", "elseif start(false) or lost or new_limit"),
    "change of a lost counter begins an epoch": Mutant(
        store.PUT,
        "    base = base < 0 and base or math.max(base, issued)",
        "    local count = issued\n    start(true)\n    issued = count",
    ),
    "change that knows of nothing ends a loss": Mutant(
        store.PUT, "(how == 'configure' or not marked)", "how == 'configure'"
    ),
    "reset keeps the count": Mutant(
        store.PUT,
        "start(how == 'restart')",
        "local before = issued\n  start(how == 'restart')\n  issued = before or 0",
    ),
    "word executed however late": Mutant(store.PUT, "return 'LATE'", "limit = limit"),
    "deletion executed however late": Mutant(store.DELETE, "return 'LATE'", "limit = limit"),
    "halt cache kept after a change": Mutant((Lane, "unhalt"), "self._halted = None", "pass"),
    "halt cache believed for long": Mutant((Lane, "_settle"), "+ worker.halt_cache", "+ 60"),
    # What is told
    "orphans not told": Mutant((Lane, "_settle"), "if orphaned:", "if False:"),
    "doubt not told": Mutant((Lane, "_give_up"), "self._worker.journal.in_doubt(self.name, len(claims))", "pass"),
    "sent again after the receipt is gone": Mutant((Lane, "_send"), "if worker.loop.time() > give_up:", "if False:"),
    "doubt at the end not told": Mutant(
        (Counters, "close"), "self._journal.in_doubt(lane.name, lane.in_flight)", "pass"
    ),
    "given up is refused": Mutant((Lane, "expire"), TIMED_OUT, "claim.future.set_result(Answer(False, 10**9, 0))"),
    "nothing given up": Mutant((Lane, "expire"), TIMED_OUT, "pass"),
    "every claim settled as one": Mutant((Lane, "_settle"), "decide(count, limit, size, ", "decide(count, limit, 1, "),
    # The connection
    "reply given to the wrong command": Mutant(
        (Pipeline, "data_received"), "self._waiting.popleft()", "self._waiting.pop()"
    ),
    "silence waited out": Mutant((Pipeline, "_watch"), "self.close()", "pass"),
    "lost replies waited for": Mutant((Pipeline, "connection_lost"), "future.set_exception(lost)", "pass"),
    "no new connection": Mutant((Link, "lost"), "if self._task is not None and self._task.done():", "if False:"),
    # Leases
    "lease used after its time": Mutant((Lease, "take"), "and self._clock() < span.until", ""),
    "lease kept without its connection": Mutant((Counters, "_on_disconnect"), "lane.end_lease()", "pass"),
    "lease kept through a loss": Mutant((Lane, "lose"), "self.lease.drop()", "pass"),
    "lease kept under another revision": Mutant((Lease, "see"), "self.end()", "pass"),
    "returned twice": Mutant((Lane, "_send"), "lease.back = []", "pass"),
    "receipt without what is lent": Mutant(
        store.CLAIM,
        "ARGV[11] .. ' ' .. reply, 'EX', ARGV[13])\nend\nreturn reply",
        "ARGV[11] .. ' ' .. (string.gsub(reply, ' [%d,-]+$', ' -')), 'EX', ARGV[13])\nend\nreturn reply",
    ),
    "free run given twice": Mutant(
        store.CLAIM, "run[1], moved, stirred = first + size, moved + size, true", "moved, stirred = moved + size, true"
    ),
    "what comes back is not free": Mutant(
        store.CLAIM, "free[#free + 1], moved, stirred = run,", "local _, moved = run,"
    ),
    "moved not compared": Mutant(store.CLAIM, "and moved >= tonumber(ARGV[7]) ", ""),
    "free runs kept through a loss": Mutant(store.CLAIM, "if field == 'free' or string", "if string"),
    "leases kept through a loss": Mutant(
        store.CLAIM, "if field == 'free' or string.sub(field, 1, 6) == 'lease:' then", "if field == 'free' then"
    ),
    "held runs forgotten": Mutant(store.CLAIM, "lease[#lease + 1] = run\n    end", "lease = lease\n    end"),
    "lent too much": Mutant(store.CLAIM, "math.floor((limit - taken) / LEASE_PART)", "math.floor((limit - taken) / 8)"),
    "refused while a lease is out": Mutant(
        (Lane, "_settle"), "if count - verdict.out + size <= limit and self._may_wait(claim):", "if False:"
    ),
    "halted while a lease is out": Mutant(
        (Lane, "_settle"), "and worker.halt_cache and not verdict.out", "and worker.halt_cache"
    ),
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The service with one mechanism broken; None: as it is. Raises LookupError if the mutant's text isn't there."""
    if name is None:
        yield
        return
    where, old, new = MUTANTS[name]
    undo = _script(where, old, new, name) if isinstance(where, store.Script) else _method(*where, old, new, name)
    try:
        yield
    finally:
        for target, attribute, before in undo:
            setattr(target, attribute, before)


def _script(script: store.Script, old: str, new: str, name: str) -> list[tuple[object, str, object]]:
    undo: list[tuple[object, str, object]] = [
        (script, "source", script.source),
        (script, "digest", script.digest),
        (store, "SOURCES", store.SOURCES),
    ]
    source = _replaced(script.source.decode(), old, new, name).encode()
    script.source, script.digest = source, hashlib.sha1(source).hexdigest()
    store.SOURCES = {each.digest: each.source for each in (store.CLAIM, store.PUT, store.DELETE, store.CLOCK)}
    return undo


def _method(owner: type, method: str, old: str, new: str, name: str) -> list[tuple[object, str, object]]:
    before = inspect.getattr_static(owner, method)
    source = _replaced(textwrap.dedent(inspect.getsource(before)), textwrap.dedent(old), new, name)
    scope: dict[str, object] = {}
    exec(
        compile("from __future__ import annotations\n" + source, f"<{name}>", "exec"),
        vars(sys.modules[owner.__module__]),
        scope,
    )
    setattr(owner, method, scope[method])
    return [(owner, method, before)]


def _replaced(source: str, old: str, new: str, name: str) -> str:
    if old not in source:
        raise LookupError(f"the mutant {name!r} does not apply any more: {old!r} is gone")
    return source.replace(old, new)
