"""Small changes of the service that each break one mechanism, to see that the simulation notices.

A mutant is a piece of source text that is replaced: in a method, in a script, or in every script that has it. One whose
text is not there any more raises LookupError: it has to follow the code.
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
    """`where` is a script, or all of them, or a class with the name of its method."""

    where: store.Script | list[store.Script] | tuple[type, str]
    old: str
    new: str


TIMED_OUT = 'claim.future.set_exception(StoreUnavailable("the store did not answer in time"))'
WRITE_RECEIPT = "redis.call('SET', KEYS[2], ARGV[11] .. ' ' .. reply, 'EX', ARGV[13])"
REVISED = """issued, moved = math.max(before, seen_issued), math.max(moved, seen_moved)
      follow()"""

SCRIPTS = [script for script in vars(store).values() if isinstance(script, store.Script)]
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
    "count not compared": Mutant(store.CLAIM, "(issued < seen_issued or moved", "(moved"),
    "revision not compared": Mutant(store.CLAIM, "elseif revision < seen_revision or", "elseif"),
    "older epoch believed": Mutant(store.CLAIM, "if not epoch or epoch < seen_epoch then", "if not epoch then"),
    "absence believed": Mutant(
        store.CLAIM, "if not epoch or epoch < seen_epoch then", "if epoch and epoch < seen_epoch then"
    ),
    "another epoch believed": Mutant(
        store.CLAIM,
        "if known and not (seen_revision > 0 and revision == 0) then",
        "if true then",
    ),
    "epoch begun in ignorance taken for a reset": Mutant(
        store.CLAIM, "(lost or not later and revision >= seen_revision)", "lost"
    ),
    "deletion that knew of less believed": Mutant(
        store.CLAIM, "seen_epoch == -base and seen_revision < revision", "seen_epoch == -base"
    ),
    "a loss not marked": Mutant(store.CLAIM, "if not over then\n        save()", "if not over then"),
    "tombstone forgotten": Mutant(store.DELETE, "lost, deleted = false, true", "lost, deleted, base = false, true, 0"),
    "raise does not lift": Mutant(
        store.CLAIM,
        "issued, moved = math.max(issued, seen_issued), math.max(moved, seen_moved)\n    else",
        "moved = seen_moved\n    else",
    ),
    "the older limit wins": Mutant(store.CLAIM, REVISED, REVISED.replace("follow()", "revision = seen_revision")),
    # Limits
    "one more admitted": Mutant(
        store.CLAIM,
        "= not above and taken + size <= limit,",
        "= not above and taken + size <= limit + 1,",
    ),
    "plain claims rounded up": Mutant(
        store.CLAIM, "math.floor((limit - taken) / size)", "math.ceil((limit - taken) / size)"
    ),
    "a count not written": Mutant(store.CLAIM, "if issued > known_issued then", "if issued > known_issued + 1 then"),
    # Keys
    "record of another epoch believed": Mutant(
        store.CLAIM, "new = tonumber(since) < (sale and was == '1' and sale.began or epoch)", "new = false"
    ),
    "key ends with its window": Mutant(
        store.CLAIM,
        "new = tonumber(since) < (sale and was == '1' and sale.began or epoch)",
        "new = tonumber(since) < epoch",
    ),
    "record not believed": Mutant(
        store.CLAIM, "new = tonumber(since) < (sale and was == '1' and sale.began or epoch)", "new = true"
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
        "ARGV[11] .. ' ' .. (string.gsub(reply, ' [%d,-]+ %-$', ' - -')), 'EX', ARGV[13])\nend\nreturn reply",
    ),
    "free run given twice": Mutant(
        store.CLAIM, "run[1], moved, stirred = first + size, moved + size, true", "moved, stirred = moved + size, true"
    ),
    "what comes back is not free": Mutant(
        store.CLAIM, "free[#free + 1], moved, stirred = run,", "local _, moved = run,"
    ),
    "moved not compared": Mutant(store.CLAIM, "and moved >= tonumber(ARGV[7]) ", ""),
    "free runs kept through a loss": Mutant(store.CLAIM, "redis.call('HDEL', KEYS[1], 'free')", ""),
    "leases kept through a loss": Mutant(
        store.CLAIM, "if string.sub(field, 1, 6) == 'lease:' then\n          redis", "if false then\n          redis"
    ),
    "held runs forgotten": Mutant(store.CLAIM, "lease[#lease + 1] = run\n    end", "lease = lease\n    end"),
    "lent too much": Mutant(store.CLAIM, "math.floor((limit - taken) / LEASE_PART)", "math.floor((limit - taken) / 8)"),
    "refused while a lease is out": Mutant(
        (Lane, "_settle"), "if room and not answer.capped and self._may_wait(claim):", "if False:"
    ),
    "halted while a lease is out": Mutant(
        (Lane, "_settle"), "and worker.halt_cache and not verdict.out", "and worker.halt_cache"
    ),
    # Holds
    "hold ends early": Mutant(
        SCRIPTS, "while sale.heap > 0 and sale.due <= second and done", "while sale.heap > 0 and done"
    ),
    "hold never ends": Mutant(SCRIPTS, "while sale.heap > 0 and sale.due <= second", "while false"),
    "holds in the wrong order": Mutant(SCRIPTS, "if other and other < one then", "if false then"),
    "hold resolved twice": Mutant(
        SCRIPTS,
        "if found.outcome ~= 'held' then\n      write(id, found) -- so that a WAIT on this connection is about it\n    elseif",
        "if found.outcome == 'expired' then\n      write(id, found)\n    elseif found.expires and",
    ),
    "confirmed in part, all kept": Mutant(
        SCRIPTS, "action == 'confirm' and (number or found.size) or 0", "action == 'confirm' and found.size or 0"
    ),
    "confirmed in part, the rest lost": Mutant(
        SCRIPTS,
        "if found.epoch == epoch and run[1] + part <= run[2] then",
        "if part == 0 and found.epoch == epoch then",
    ),
    "hold of a window that is over": Mutant(
        SCRIPTS, "if found.epoch == epoch and run[1] + part <= run[2] then", "if run[1] + part <= run[2] then"
    ),
    "holds kept through a loss": Mutant(SCRIPTS, "sale.began and tonumber(losses) == sale.losses", "sale.began"),
    "reset keeps resolutions": Mutant(SCRIPTS, "if not found or found.epoch < sale.began or", "if not found or"),
    "resolutions not compared": Mutant(
        SCRIPTS, "(revision < seen_revision or sale.resolved < seen_resolved)", "revision < seen_revision"
    ),
    "hold shorter than asked": Mutant(
        SCRIPTS, "math.floor(now / 1000000) + seconds + 1", "math.floor(now / 1000000) + seconds"
    ),
    "hold not in its key's record": Mutant(store.CLAIM, "told, admitted and id or '', expires", "told, '', expires"),
    "resolution executed however late": Mutant(store.RESOLVE, "return 'LATE'", "limit = limit"),
    "halt cache kept after a resolution": Mutant((Counters, "_resolve"), "lane.unhalt()", "pass"),
    "resolutions not told": Mutant(
        (Counters, "_resolve"), "self._journal.resolved(name, counter.limit, resolution)", "pass"
    ),
    "expiry not told": Mutant((Lane, "_settle"), "worker.journal.expired(self.name, verdict.expired)", "pass"),
    # Give-backs
    "given back twice": Mutant(SCRIPTS, "without({ { first, last } }, chunk.back), {}", "{ { first, last } }, {}"),
    "given back before it is given": Mutant(store.GIVE_BACK, "local never = run[2] > issued", "local never = false"),
    "given back from a lease": Mutant(
        store.GIVE_BACK, "if met and tonumber(at) > now - LEASE_RETURN then", "if false then"
    ),
    "receipt of a give-back not checked": Mutant(
        store.GIVE_BACK, "if receipt then\n  redis.call('EXPIRE'", "if false then\n  redis.call('EXPIRE'"
    ),
    "give-back executed however late": Mutant(store.GIVE_BACK, "return 'LATE'", "limit = limit"),
    "halt cache kept after a give-back": Mutant(
        (Counters, "give_back"), "self._learn(counter).unhalt()", "self._learn(counter)"
    ),
    "give-backs not told": Mutant((Counters, "give_back"), "self._journal.given_back(name, runs, given)", "pass"),
    # Claimants
    "share not checked": Mutant(SCRIPTS, "return sale.each > 0 and claimant ~= '' and", "return false and"),
    "share kept": Mutant(SCRIPTS, "shares[claimant] = share_of(claimant) - size + total(left)", "share_of(claimant)"),
    "held numbers in no share": Mutant(
        SCRIPTS,
        "shares[claimant] = share_of(claimant) + size",
        "shares[claimant] = share_of(claimant) + (id == '' and size or 0)",
    ),
    "shares kept without claimants": Mutant(
        SCRIPTS, "or sale.chunk ~= '-' or sale.resolved > 0", "or sale.given > 0 or sale.resolved > 0"
    ),
    "capped claims settled as others": Mutant(
        (Lane, "_settle"), "verdict.each, place in capped)", "verdict.each, False)"
    ),
    # Windows
    "no renewal": Mutant(
        SCRIPTS, "if not sale or sale.ends == 0 or now < sale.ends or lost or deleted then", "if true then"
    ),
    "renewal is a loss": Mutant(
        SCRIPTS, "local ended = renewed or 0 < seen_ends and seen_ends <= epoch", "local ended = false"
    ),
    "loss at a renewal is none": Mutant(
        SCRIPTS, "if not (renewed and (revision < seen_revision or sale.resolved < seen_resolved)) then", "if true then"
    ),
    "renewal keeps the count": Mutant(
        SCRIPTS, "math.max(from, epoch + 1), to, 0, 0", "math.max(from, epoch + 1), to, issued, 0"
    ),
    "renewal keeps what was given back": Mutant(
        SCRIPTS, "    clear()\n    forget()\n    return true", "    forget()\n    return true"
    ),
    "window begins when it is noticed": Mutant(SCRIPTS, "math.max(from, epoch + 1), to, 0, 0", "now, to, 0, 0"),
    "window of an earlier worker": Mutant(SCRIPTS, "sale.ends = math.max(later, seen_ends)", "sale.ends = seen_ends"),
    "renewed counter forgets when it began": Mutant(SCRIPTS, "\n      or sale.began ~= epoch) then", ") then"),
    "lent beyond the window": Mutant(
        store.CLAIM, "(sale.each > 0 or 0 < sale.ends and sale.ends <= now + LEASE)", "sale.each > 0"
    ),
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The service with one mechanism broken; None: as it is. Raises LookupError if the mutant's text isn't there."""
    if name is None:
        yield
        return
    where, old, new = MUTANTS[name]
    if isinstance(where, tuple):
        undo = _method(*where, old, new, name)
    else:
        scripts = [where] if isinstance(where, store.Script) else where
        undo = _scripts([each for each in scripts if old.encode() in each.source] or scripts, old, new, name)
    try:
        yield
    finally:
        for target, attribute, before in undo:
            setattr(target, attribute, before)


def _scripts(scripts: list[store.Script], old: str, new: str, name: str) -> list[tuple[object, str, object]]:
    undo: list[tuple[object, str, object]] = [(store, "SOURCES", store.SOURCES)]
    for script in scripts:
        undo += [(script, "source", script.source), (script, "digest", script.digest)]
        source = _replaced(script.source.decode(), old, new, name).encode()
        script.source, script.digest = source, hashlib.sha1(source).hexdigest()
    store.SOURCES = {each.digest: each.source for each in SCRIPTS}
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
