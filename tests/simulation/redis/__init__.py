"""A small Redis in memory, for a world whose time is simulated: no sockets, threads or asyncio, and nothing random.

    server = Server(now, appendfsync="everysec")    # now() gives microseconds; it may step, forwards or back
    session = server.connect()                      # a client's connection: its database, its last write
    for command in session.feed(data):              # RESP as it arrives, cut anywhere; yields list[bytes]
        reply = session.execute(command)            # RESP2 bytes, an error reply included; never raises

Time passes only by `now`; a command is atomic and takes none of it. Scripts are run by the real Lua 5.1.

WAIT and WAITAOF reply at once with what is confirmed by now. `session.blocks(command)` tells for how many milliseconds
(inf: for ever) a real server would let them wait, None if it wouldn't: whoever owns time calls `execute` later.

What can happen to a server:

    server.full = True                  # out of memory: commands that may use more, and such scripts, get OOM
    server.refusal = LOADING            # every command gets this error (LOADING, BUSY, MASTERDOWN)
    server.write_refusal = MISCONF      # every write gets it (MISCONF, NOREPLICAS; a replica's READONLY is its own)
    server.config[b"appendfsync"]       # what CONFIG GET tells and the server does: appendonly, appendfsync,
                                        # maxmemory-policy
    server.sync()                       # fsync; `everysec` does so itself when a second of now() has begun
    server.unsynced                     # commands that changed something since then
    server.restart(lost=None)           # as after a crash of the machine: the last `lost` of the unsynced commands
                                        # are gone (None: all); scripts, too. Drop the sessions: they are invalid
    backup = server.copy()              # a backup ...
    server.restore(backup)              # ... and a restart from it; on another server, too
    server.evict(key, database=0)       # as the maxmemory-policy would; False if it would not
    server.expire()                     # the sweep: forget all that is expired by now(); else on access
    server.flush()                      # FLUSHALL by somebody else

Replication (asynchronous, of effects: a script arrives as what it changed, at once or not at all):

    replica = Server(now); replica.follow(server)   # with a copy of everything, as a full resynchronization gives
    replica.lag                                     # commands that it has not yet applied
    replica.catch_up(n=None, acknowledge=True)      # apply the next n; a full copy where the primary began anew
    replica.acknowledge()                           # tell the primary how far it is (what WAIT counts)
    replica.promote()                               # a primary with what it has; others may follow() it
    replica.leave()                                 # the primary no longer counts it (the link is gone)

Inspection, for checkers: `server.contents(database=0)` is what a client could read by now: {key: (value, expiry)};
values are bytes, Hash, Members (set) and Scores (sorted set), the expiry in milliseconds of now() or 0.
`server.value(key, database=0)` is one of those values.

Held to a real Valkey by tests/simulation/test_redis.py.
"""

from tests.simulation.redis import administration, collections, scripting, sorted_sets, strings
from tests.simulation.redis.keyspace import Hash, Members, Scores
from tests.simulation.redis.replies import BUSY, LOADING, MASTERDOWN, MISCONF, NOREPLICAS
from tests.simulation.redis.server import Server, Session

__all__ = [
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "Hash",
    "Members",
    "Scores",
    "Server",
    "Session",
    "administration",
    "collections",
    "scripting",
    "sorted_sets",
    "strings",
]
