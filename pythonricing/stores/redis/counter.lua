-- What all scripts begin with, after their name in `script`: a counter as it is stored, held against what the worker
-- has seen of it. A translation of counting/rules.py; docs/protocol.md says why.
--
-- KEYS[1]    the counter, a hash: count, limit, most (the largest claim, 0: no bound), epoch (microseconds), revision,
--            base (the highest number of earlier epochs that this one takes account of; or,
--            negative, the last epoch of which it takes account of all: that of a known deletion), and lost (the count that is
--            known) once data turned out to be gone or too old; or its tombstone: deleted, epoch, revision
--
-- ARGV[1..6] what the worker has seen: epoch, revision, count, limit, most, deleted (1 or 0); or '' each
-- ARGV[7]    what a loss does: "halt" marks the counter as lost; "raise" lifts it to what is known of it
-- ARGV[8]    seconds that a tombstone is kept
--
-- Numbers stay exact up to 2^53 ('%.0f': Lua's own conversion keeps 14 digits).
-- No key is ever deleted and written again: while a cluster moves the slot, a key that is gone can't come back here.

-- The state's version, a field of its own: 2 since there are revisions; without one it is 1, which this reads too.
local VERSION = 2
local ALL = 2 ^ 53 -- as a base: begun by somebody who meant to start over

local function digits(number)
  return string.format('%.0f', number)
end

local stored = redis.call('HMGET', KEYS[1],
  'count', 'limit', 'most', 'epoch', 'revision', 'base', 'lost', 'deleted', 'origin')
local count, limit, most, epoch = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), tonumber(stored[4])
local revision, base, lost, deleted = tonumber(stored[5]), tonumber(stored[6]), stored[7], stored[8]
-- A counter that an earlier version has written: its lost count is apart, who began its epoch is `origin`.
most, revision = most or 0, revision or 0
base = base or (deleted or stored[9] == 'operator') and ALL or 0
count = lost and math.max(count or 0, tonumber(lost)) or count
lost, deleted = lost and true, deleted and true

local raised = false -- the count before a loss raised it
local saved = false -- whether the state is another one than `stored`

-- Claims mostly find the state that their worker has seen, and need nothing of what follows. Functions that capture the
-- state cost a fifth of the script, so they are only made where they may be needed.
local save, start, reconcile, recover, missing
local settled = script == 'claim' and stored[4] == ARGV[1] and stored[5] == ARGV[2] and count >= tonumber(ARGV[3])
  and not lost and not deleted
if not settled then
  -- A later version that other states follow from raises the revision with it, or begins an epoch: so it is noticed here.
  local version = redis.call('HGET', KEYS[1], 'version')
  if version and tonumber(version) > VERSION then
    return 'NEWER ' .. version .. ' ' .. VERSION
  end

  function save()
    saved = true
    redis.call('HSET', KEYS[1], 'count', digits(count), 'limit', digits(limit), 'most', digits(most),
      'epoch', digits(epoch), 'revision', digits(revision), 'base', digits(base))
    redis.call('HDEL', KEYS[1], 'origin')
    redis.call('HSET', KEYS[1], 'version', VERSION)
    for field, value in pairs({ lost = lost and digits(count) or '', deleted = deleted and '1' or '' }) do
      if value == '' then
        redis.call('HDEL', KEYS[1], field)
      else
        redis.call('HSET', KEYS[1], field, value)
      end
    end
    if deleted and not lost then
      redis.call('EXPIRE', KEYS[1], ARGV[8])
    else
      redis.call('PERSIST', KEYS[1])
    end
  end

  -- Begin an epoch at 0; restarted: by somebody who meant to, whatever was before it.
  function start(restarted)
    base = restarted and ALL or 0 - (epoch or 0)
    local now = redis.call('TIME')
    epoch = math.max(tonumber(now[1]) * 1000000 + tonumber(now[2]), (epoch or 0) + 1, (tonumber(ARGV[1]) or 0) + 1)
    count, lost, deleted, raised = 0, false, false, false
  end

  -- Add what the worker has seen beyond the state; returns whether there was any, which the store has lost then.
  function reconcile()
    local seen_epoch = tonumber(ARGV[1])
    if not seen_epoch then
      return false
    end
    local seen_revision, seen_count = tonumber(ARGV[2]), tonumber(ARGV[3])
    local before = count or 0
    if not epoch or epoch < seen_epoch then
      epoch, revision, count, base = seen_epoch, seen_revision, seen_count, 0
      limit, most, deleted = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
    elseif epoch > seen_epoch then
      -- Begun without knowledge of what was seen; who has nothing to lose has lost nothing.
      if (seen_epoch <= -base or seen_count <= math.max(base, 0)) and not (seen_revision > 0 and revision == 0) then
        return false
      end
      count = math.max(count, seen_count)
      if revision == 0 and ARGV[6] ~= '1' then
        revision, limit, most = seen_revision, tonumber(ARGV[4]), tonumber(ARGV[5])
      end
    elseif revision < seen_revision then
      count, revision = math.max(before, seen_count), seen_revision
      limit, most, deleted = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
    elseif not deleted and count < seen_count then
      count = seen_count
    else
      return false
    end
    raised = digits(before)
    return true
  end

  -- Do so and keep it; returns whether the counter is lost, and whether it was before.
  function recover()
    local raise, marked, more = ARGV[7] == 'raise', lost, reconcile()
    if more or raise and marked then
      raised = raise and (raised or digits(count))
      lost = not raise
      save()
    end
    return lost, marked
  end

  function missing()
    return epoch and 'MISSING ' .. digits(epoch) .. ' ' .. digits(revision) or 'MISSING'
  end
end
