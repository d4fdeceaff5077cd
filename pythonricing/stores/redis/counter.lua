-- What all scripts begin with, after their name in `script` and, for a claim, quick.lua: a counter as it is stored, held against what the worker
-- has seen of it. A translation of counting/rules.py; docs/protocol.md says why.
--
-- KEYS[1]    the counter, a hash: count (the highest number issued), limit, most (the largest claim, 0: no bound), epoch
--            (microseconds), revision, base (the highest number of earlier epochs that this one takes account of;
--            or, negative, the last epoch of which it takes account of all: that of a known deletion),
--            moved, free ("epoch run run ...", a run is "first-last"), for each worker with a lease "lease:worker" ("epoch
--            moment run run ..."), and lost (what is known to be issued) once data turned out to be gone or too old; or
--            its tombstone: deleted, epoch, revision
--
-- ARGV[1..7] what the worker has seen: epoch, revision, issued, limit, most, deleted (1 or 0), moved; or '' each
-- ARGV[8]    what a loss does: "halt" marks the counter as lost; "raise" lifts it to what is known of it
-- ARGV[9]    seconds that a tombstone is kept
-- ARGV[10]   the worker, or '' where it has no part in this
--
-- Numbers stay exact up to 2^53 ('%.0f': Lua's own conversion keeps 14 digits).
-- No key is ever deleted and written again: while a cluster moves the slot, a key that is gone can't come back here.

-- The state's version, a field of its own: 2 since there are revisions; without one it is 1, which this reads too.
local VERSION = 2
local ALL = 2 ^ 53 -- as a base: begun by somebody who meant to start over
-- Microseconds for which a lease is waited for; and those for which it may come back at all.
local LEASE_RETURN, LEASE_KEPT = 300000, 3600000000
-- A lease is at most one part in so many of what is left, and at least so many numbers; nothing is lent above so many free
-- runs; and so many of them make one lease at most.
local LEASE_PART, LEASE_LEAST, MAX_FREE, MAX_LENT = 64, 4, 64, 8

local function digits(number)
  return string.format('%.0f', number)
end

-- The runs in a text, as pairs.
local function runs_of(text)
  local runs = {}
  for first, last in string.gmatch(text, '(%d+)-(%d+)') do
    runs[#runs + 1] = { tonumber(first), tonumber(last) }
  end
  return runs
end

local function total(runs)
  local sum = 0
  for _, run in ipairs(runs) do
    sum = sum + run[2] - run[1] + 1
  end
  return sum
end

-- Runs as a text.
local function text(runs)
  local parts = {}
  for i, run in ipairs(runs) do
    parts[i] = string.format('%.0f-%.0f', run[1], run[2])
  end
  return table.concat(parts, ',')
end

-- Append a run; one that follows the last one is added to it.
local function add(runs, first, last)
  local latest = runs[#runs]
  if latest and latest[2] + 1 == first then
    latest[2] = last
  else
    runs[#runs + 1] = { first, last }
  end
end

-- Runs in order, those that touch made one.
local function sorted(runs)
  table.sort(runs, function(one, other) return one[1] < other[1] end)
  local apart = {}
  for _, run in ipairs(runs) do
    add(apart, run[1], run[2])
  end
  return apart
end

stored = stored or redis.call('HMGET', KEYS[1], 'count', 'limit', 'most', 'epoch', 'revision', 'base', 'lost', 'deleted',
  'origin', 'moved', 'free', 'lease:' .. (ARGV[10] or '')) -- as in quick.lua
local issued, limit, most, epoch = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), tonumber(stored[4])
local revision, base, lost, deleted = tonumber(stored[5]), tonumber(stored[6]), stored[7], stored[8]
local moved, free = tonumber(stored[10]) or 0, {}
if stored[11] and string.match(stored[11], '^%d+') == stored[4] then
  free = runs_of(stored[11])
end
-- A counter that an earlier version has written: what is lost is apart, who began its epoch is `origin`.
most, revision = most or 0, revision or 0
base = base or (deleted or stored[9] == 'operator') and ALL or 0
issued = lost and math.max(issued or 0, tonumber(lost)) or issued
lost, deleted = lost and true, deleted and true

local raised = false -- the number before a loss raised it
local saved = false -- whether the state is another one than `stored`
local forgotten = false -- whether what was free and leased is over

-- Claims mostly find the state that their worker has seen, and need nothing of what follows. Functions that capture the
-- state cost a fifth of the script, so they are only made where they may be needed.
local save, forget, start, reconcile, recover, missing
local settled = script == 'claim' and stored[4] == ARGV[1] and stored[5] == ARGV[2] and issued >= tonumber(ARGV[3])
  and moved >= tonumber(ARGV[7]) and not lost and not deleted
if not settled then
  -- A later version that other states follow from raises the revision with it, or begins an epoch: so it is noticed here.
  local version = redis.call('HGET', KEYS[1], 'version')
  if version and tonumber(version) > VERSION then
    return 'NEWER ' .. version .. ' ' .. VERSION
  end

  function save()
    saved = true
    redis.call('HSET', KEYS[1], 'count', digits(issued), 'limit', digits(limit), 'most', digits(most),
      'epoch', digits(epoch), 'revision', digits(revision), 'base', digits(base), 'moved', digits(moved))
    redis.call('HDEL', KEYS[1], 'origin')
    if forgotten then
      for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
        if field == 'free' or string.sub(field, 1, 6) == 'lease:' then
          redis.call('HDEL', KEYS[1], field)
        end
      end
    end
    redis.call('HSET', KEYS[1], 'version', VERSION)
    for field, value in pairs({ lost = lost and digits(issued) or '', deleted = deleted and '1' or '' }) do
      if value == '' then
        redis.call('HDEL', KEYS[1], field)
      else
        redis.call('HSET', KEYS[1], field, value)
      end
    end
    if deleted and not lost then
      redis.call('EXPIRE', KEYS[1], ARGV[9])
    else
      redis.call('PERSIST', KEYS[1])
    end
  end

  -- Nothing is free and nothing leased any more, once this is saved.
  function forget()
    free, stored[12], forgotten = {}, false, true
  end

  -- Begin an epoch at 0; restarted: by somebody who meant to, whatever was before it.
  function start(restarted)
    base = restarted and ALL or 0 - (epoch or 0)
    local now = redis.call('TIME')
    epoch = math.max(tonumber(now[1]) * 1000000 + tonumber(now[2]), (epoch or 0) + 1, (tonumber(ARGV[1]) or 0) + 1)
    issued, moved, lost, deleted, raised = 0, 0, false, false, false
    forget()
  end

  -- Add what the worker has seen beyond the state; returns whether there was any, which the store has lost then.
  function reconcile()
    local seen_epoch = tonumber(ARGV[1])
    if not seen_epoch then
      return false
    end
    local seen_revision, seen_issued, seen_moved = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[7])
    local before = issued or 0
    if not epoch or epoch < seen_epoch then
      -- Of a counter that is lost the count is the highest that anybody has told, in whichever epoch. And a later epoch of
      -- no later revision was no reset of this one, but begun by somebody who knew nothing.
      issued = math.max((lost or revision >= seen_revision) and not deleted and before or 0, seen_issued)
      epoch, revision, base, moved = seen_epoch, seen_revision, 0, seen_moved
      limit, most, deleted = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
    elseif epoch > seen_epoch then
      -- Begun without knowledge of what was seen; who has nothing to lose has lost nothing. Whoever began it after a
      -- deletion made the revision greater than all that they knew of the epoch that it ended.
      local told_of = seen_epoch < -base or seen_epoch == -base and seen_revision < revision
      if (told_of or seen_issued <= math.max(base, 0)) and not (seen_revision > 0 and revision == 0) then
        return false
      end
      issued = math.max(issued, seen_issued)
      if revision == 0 and ARGV[6] ~= '1' then
        revision, limit, most = seen_revision, tonumber(ARGV[4]), tonumber(ARGV[5])
      end
    elseif revision < seen_revision or (revision == seen_revision and deleted and ARGV[6] ~= '1') then
      issued, moved, revision = math.max(before, seen_issued), math.max(moved, seen_moved), seen_revision
      limit, most, deleted = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
    elseif not deleted and (issued < seen_issued or moved < seen_moved) then
      issued, moved = math.max(issued, seen_issued), math.max(moved, seen_moved)
    else
      return false
    end
    -- What is stored as free may have been given since, what is stored as leased may have come back.
    forget()
    raised = digits(before)
    return true
  end

  -- Do so and keep it; returns whether the counter is lost, and whether it was before.
  function recover()
    local raise, marked, more = ARGV[8] == 'raise', lost, reconcile()
    if more or raise and marked then
      raised = raise and (raised or digits(issued))
      lost = not raise
      save()
    end
    return lost, marked
  end

  function missing()
    return epoch and 'MISSING ' .. digits(epoch) .. ' ' .. digits(revision) or 'MISSING'
  end
end

-- How many numbers are out on leases that may come back, and the time; `own` is what this worker's lease is by now. Leases
-- that nobody will ask for any more are removed.
local function out(own, own_at)
  local time = redis.call('TIME')
  local now, sum = tonumber(time[1]) * 1000000 + tonumber(time[2]), 0
  if own_at and tonumber(own_at) > now - LEASE_RETURN then
    sum = total(own)
  end
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 6) == 'lease:' and fields[i] ~= 'lease:' .. ARGV[10] then
      local at, runs = string.match(fields[i + 1], '^' .. digits(epoch) .. ' (%d+)(.*)$')
      at = tonumber(at)
      if at and at > now - LEASE_RETURN then
        sum = sum + total(runs_of(runs))
      elseif not at or at <= now - LEASE_KEPT then
        redis.call('HDEL', KEYS[1], fields[i])
      end
    end
  end
  return sum
end
