-- What all scripts begin with, after their name in `script` and, for a claim, quick.lua: a counter as it is stored, held
-- against what the worker has seen of it. A translation of counting/rules.py; docs/protocol.md says why.
--
-- KEYS[1]    the counter, a hash: count (the highest number issued), limit, most (the largest claim, 0: no bound), epoch
--            (microseconds), revision, base (the highest number of earlier epochs that this one takes account of;
--            or, negative, the last epoch of which it takes account of all: that of a known deletion),
--            moved, free ("epoch run run ...", a run is "first-last"), for each worker with a lease "lease:worker" ("epoch
--            moment run run ..."), and lost (what is known to be issued) once data turned out to be gone or too old; or
--            its tombstone: deleted, epoch, revision. One with holds, give-backs, claimants or windows has a field `sale`
--            too (see SALE below), and what holds.lua says; and a 0 before its revision, so that workers of version 2 take it
--            for one that they haven't seen, and look at the version before they count
--
-- ARGV[1..7] what the worker has seen: epoch, revision, issued, limit, most, deleted (1 or 0), moved; or '' each
-- ARGV[8]    what a loss does: "halt" marks the counter as lost; "raise" lifts it to what is known of it
-- ARGV[9]    what else it has seen: "resolved each ends every zone", "-" for no every or zone and 0 for what isn't known, and
--            each window of the calendar that was asked for: " every zone begins ends"; or ''
-- ARGV[10]   the worker, or '' where it has no part in this
--
-- Numbers stay exact up to 2^53 ('%.0f': Lua's own conversion keeps 14 digits).
-- No key is ever deleted and written again: while a cluster moves the slot, a key that is gone can't come back here.

-- The state's version, a field of its own: 3 where there is `sale`, or else 2; without one it is 1, which this reads too.
local VERSION = 3
local ALL = 2 ^ 53 -- as a base: begun by somebody who meant to start over
local TOMBSTONE = 604800 -- seconds that a tombstone is kept
-- Microseconds for which a lease is used; for which it is waited for; and those for which it may come back at all.
local LEASE, LEASE_RETURN, LEASE_KEPT = 100000, 300000, 3600000000
-- A lease is at most one part in so many of what is left, and at least so many numbers; nothing is lent above so many free
-- runs; and so many of them make one lease at most.
local LEASE_PART, LEASE_LEAST, MAX_FREE, MAX_LENT = 64, 4, 64, 8

local function digits(number)
  return string.format('%.0f', number)
end

-- The time in microseconds.
local function time()
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000000 + tonumber(now[2])
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
  'sale', 'moved', 'free', 'lease:' .. (ARGV[10] or '')) -- as in quick.lua
local issued, limit, most, epoch = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), tonumber(stored[4])
local revision, base, lost, deleted = tonumber(stored[5]), tonumber(stored[6]), stored[7], stored[8]
local moved, free = tonumber(stored[10]) or 0, {}
if stored[11] and string.match(stored[11], '^%d+') == stored[4] then
  free = runs_of(stored[11])
end
-- A counter that an earlier version has written: what is lost is apart, who began its epoch is `origin`.
most, revision = most or 0, revision or 0
base = base or (deleted or redis.call('HGET', KEYS[1], 'origin') == 'operator') and ALL or 0
issued = lost and math.max(issued or 0, tonumber(lost)) or issued
lost, deleted = lost and true, deleted and true

-- SALE: what a counter has beside its count, or nil. In the field it is these in this order, separated by spaces, "-" for
-- '', and then the workers that have leases (or had one), since a hash with many holds can't be looked through.
--   given     numbers given back in this epoch     each      numbers that a claimant may own, 0: no claimants
--   held      numbers on holds in this epoch       ends      end of its window, microseconds, 0: it has none
--   due       second at which a hold is looked at  began     epoch with which it was last started over
--   heap      holds that are known                 resolved  holds confirmed or released since then
--   chunk     the chunk that was made last         losses    losses of data
--   every, zone   how it renews
local sale, now = nil, false
local altered = false -- whether there is something of it to be kept
if stored[9] then
  sale, now = {}, time()
  local workers
  sale.given, sale.held, sale.due, sale.heap, sale.chunk, sale.each, sale.ends, sale.began, sale.resolved, sale.losses,
    sale.every, sale.zone, workers = string.match(stored[9],
    '^(%d+) (%d+) (%d+) (%d+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+)(.*)$')
  for _, field in ipairs({ 'given', 'held', 'due', 'heap', 'each', 'ends', 'began', 'resolved', 'losses' }) do
    sale[field] = tonumber(sale[field])
  end
  sale.every, sale.zone = sale.every ~= '-' and sale.every or '', sale.zone ~= '-' and sale.zone or ''
  sale.workers = {}
  for worker in string.gmatch(workers, '%S+') do
    sale.workers[#sale.workers + 1] = worker
  end
end

local raised = false -- the number before a loss raised it
local saved = false -- whether the state is another one than `stored`
local forgotten = false -- whether what was free and leased is over

-- Claims mostly find the state that their worker has seen, and need nothing of what follows. Functions that capture the
-- state cost a fifth of the script, so they are only made where they may be needed.
local save, forget, start, reconcile, recover, missing, renew, follow, rule, clear, window
local over = false -- the reply that asks for the window that contains the time
local settled = script == 'claim' and stored[4] == ARGV[1] and stored[5] == (sale and '0' .. ARGV[2] or ARGV[2])
  and issued >= tonumber(ARGV[3]) and moved >= tonumber(ARGV[7]) and not lost and not deleted
  and not (sale and 0 < sale.ends and sale.ends <= now)
  and (ARGV[9] == '' or (sale and sale.resolved or 0) >= tonumber(string.match(ARGV[9], '^%d+')))

local special, save_sale, listed
if sale or not settled or ARGV[20] == '1' then
  -- What a counter with holds, give-backs, claimants or windows has of its own; made where it has none.
  function special()
    if not sale then
      now = now or time()
      sale = { given = 0, held = 0, due = 0, heap = 0, chunk = '-', each = 0, ends = 0, began = epoch or 0, resolved = 0,
        losses = 0, every = '', zone = '', workers = {} }
      for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
        if string.sub(field, 1, 6) == 'lease:' then
          sale.workers[#sale.workers + 1] = string.sub(field, 7)
        end
      end
    end
    return sale
  end

  -- The leases of the workers that are known to have some, as HGETALL has them; or nil where it must be asked.
  function listed()
    if not sale then
      return nil
    end
    local workers, fields = {}, {}
    for _, worker in ipairs(sale.workers) do
      local runs = redis.call('HGET', KEYS[1], 'lease:' .. worker)
      if runs then
        workers[#workers + 1] = worker
        fields[#fields + 1], fields[#fields + 2] = 'lease:' .. worker, runs
      end
    end
    sale.workers, altered = workers, altered or #workers < #sale.workers
    return fields
  end

  function save_sale()
    local function word(text)
      return text ~= '' and text or '-'
    end
    local workers = sale.workers[1] and ' ' .. table.concat(sale.workers, ' ') or ''
    redis.call('HSET', KEYS[1], 'version', VERSION, 'revision', '0' .. digits(revision), 'moved', digits(moved), 'sale',
      string.format('%.0f %.0f %.0f %.0f %s %.0f %.0f %.0f %.0f %.0f %s %s', sale.given, sale.held, sale.due, sale.heap,
        sale.chunk, sale.each, sale.ends, sale.began, sale.resolved, sale.losses, word(sale.every), word(sale.zone))
      .. workers)
  end
end

if not settled then
  now = now or time()
  -- A later version that other states follow from writes the revision in another way: so it is noticed here.
  local version = redis.call('HGET', KEYS[1], 'version')
  if version and tonumber(version) > VERSION then
    return 'NEWER ' .. version .. ' ' .. VERSION
  end

  local chunk = '-' -- the last one of an epoch that is over

  function save()
    saved = true
    while chunk ~= '-' do
      local before, owners = string.match(redis.call('HGET', KEYS[1], 'chunk:' .. chunk), '^(%S+) %S+ %S+(.*)$')
      redis.call('HDEL', KEYS[1], 'chunk:' .. chunk)
      for claimant in string.gmatch(owners, ' %d+%-%d+ (%S+)') do
        redis.call('HDEL', KEYS[1], 'for:' .. claimant)
      end
      chunk = before
    end
    redis.call('HSET', KEYS[1], 'count', digits(issued), 'limit', digits(limit), 'most', digits(most),
      'epoch', digits(epoch), 'revision', digits(revision), 'base', digits(base), 'moved', digits(moved))
    redis.call('HDEL', KEYS[1], 'origin')
    if forgotten then
      local fields = sale and {} or redis.call('HKEYS', KEYS[1])
      for _, worker in ipairs(sale and sale.workers or {}) do
        fields[#fields + 1] = 'lease:' .. worker
      end
      redis.call('HDEL', KEYS[1], 'free')
      for _, field in ipairs(fields) do
        if string.sub(field, 1, 6) == 'lease:' then
          redis.call('HDEL', KEYS[1], field)
        end
      end
    end
    if sale and stored[8] and not deleted and stored[4] == digits(epoch) then
      -- Deleted, and there again in the same epoch, since a worker has seen more: nobody holds anything.
      for place = 1, sale.heap do
        local id = string.match(redis.call('HGET', KEYS[1], 'heap:' .. place), ' (.*)$')
        redis.call('HDEL', KEYS[1], 'heap:' .. place, 'hold:' .. id)
      end
      sale.heap, sale.due = 0, 0
    end
    if sale and (sale.heap > 0 or sale.each > 0 or sale.every ~= '' or sale.chunk ~= '-' or sale.resolved > 0
      or sale.began ~= epoch) then
      sale.workers = forgotten and {} or sale.workers
      save_sale()
    else
      redis.call('HDEL', KEYS[1], 'sale')
      redis.call('HSET', KEYS[1], 'version', 2)
    end
    for field, value in pairs({ lost = lost and digits(issued) or '', deleted = deleted and '1' or '' }) do
      if value == '' then
        redis.call('HDEL', KEYS[1], field)
      else
        redis.call('HSET', KEYS[1], field, value)
      end
    end
    if deleted and not lost then
      redis.call('EXPIRE', KEYS[1], TOMBSTONE)
    else
      redis.call('PERSIST', KEYS[1])
    end
  end

  -- Nothing is free and nothing leased any more, once this is saved.
  function forget()
    free, stored[12], forgotten = {}, false, true
  end

  -- Another epoch begins: nothing of it was given back, or is held or owned, once this is saved.
  function clear()
    if sale then
      chunk = chunk ~= '-' and chunk or sale.chunk
      sale.chunk, sale.given, sale.held = '-', 0, 0
    end
  end

  -- Begin an epoch at 0; restarted: by somebody who meant to, whatever was before it.
  function start(restarted)
    base = restarted and ALL or 0 - (epoch or 0)
    epoch = math.max(now, (epoch or 0) + 1, (tonumber(ARGV[1]) or 0) + 1)
    issued, moved, lost, deleted, raised = 0, 0, false, false, false
    if sale then
      clear()
      sale.began, sale.resolved = epoch, 0
    end
    forget()
  end

  -- What the worker has seen beyond ARGV[7], and the window that it has computed.
  local more = { string.match(ARGV[9] or '', '^(%d+) (%d+) (%d+) (%S+) (%S+)(.*)$') }
  local seen_resolved, seen_each, seen_ends = tonumber(more[1]) or 0, tonumber(more[2]) or 0, tonumber(more[3]) or 0
  local seen_every, seen_zone = more[4] or '-', more[5] or '-'

  -- Begin and end of the window that contains the time; or nil, and `over` asks for it.
  function window(every, zone)
    local length, unit = string.match(every, '^(%d+)([smhd])$')
    if length then
      length = length * ({ s = 1, m = 60, h = 3600, d = 86400 })[unit] * 1000000
      local from = now - math.fmod(now, length)
      return from, from + length
    end
    zone = zone ~= '' and zone or '-'
    for each, where, begins, ends in string.gmatch(more[6] or '', ' (%S+) (%S+) (%d+) (%d+)') do
      if each == every and where == zone and tonumber(begins) <= now and now < tonumber(ends) then
        return tonumber(begins), tonumber(ends)
      end
    end
    over = 'OVER ' .. digits(now) .. ' ' .. every .. ' ' .. zone
  end

  -- Begin the window that contains the time, if the one before is over; returns whether it did, and nothing is kept yet.
  -- The epoch is the moment at which it begins: an older copy that renews again has the same one, and less in it.
  function renew()
    if not sale or sale.ends == 0 or now < sale.ends or lost or deleted then
      return false
    end
    local from, to = window(sale.every, sale.zone)
    if not from then
      return false
    end
    epoch, sale.ends, issued, moved = math.max(from, epoch + 1), to, 0, 0
    clear()
    forget()
    return true
  end

  -- Have these rules beside limit and largest claim; `anew`: the window is the one that contains the time.
  function rule(each, every, zone, anew)
    if sale or each > 0 or every ~= '' then
      special()
      sale.each, sale.every, sale.zone = each, every, zone
      if anew then
        sale.ends = 0
        if every ~= '' then
          local _, ends = window(every, zone)
          sale.ends = ends or 0
        end
      end
    end
  end

  -- Have the rules that the worker has seen.
  function follow()
    revision, limit, most, deleted = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
    rule(seen_each, seen_every ~= '-' and seen_every or '', seen_zone ~= '-' and seen_zone or '')
    if sale then
      -- A worker of an earlier window doesn't end the one that it is now.
      local later = seen_every ~= '-' and epoch and epoch > tonumber(ARGV[1]) and sale.ends or 0
      sale.ends = math.max(later, seen_ends)
    end
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
      -- no later revision was no reset of this one, but a later window, or begun by somebody who knew nothing.
      local later = sale and 0 < sale.ends and sale.ends <= seen_epoch
      local kept = (lost or not later and revision >= seen_revision) and not deleted
      issued = math.max(kept and before or 0, seen_issued)
      epoch, base, moved = seen_epoch, 0, seen_moved
      clear()
      follow()
      if sale or seen_resolved > 0 then
        special()
        sale.began, sale.resolved = epoch, seen_resolved
      end
    elseif epoch > seen_epoch then
      -- Of a window that is over the numbers don't matter any more, but what it renews by does.
      local renewed = sale and seen_epoch >= sale.began
      local ended = renewed or 0 < seen_ends and seen_ends <= epoch
      if not (renewed and (revision < seen_revision or sale.resolved < seen_resolved)) then
        -- Begun without knowledge of what was seen; who has nothing to lose has lost nothing. Whoever began it after a
        -- deletion made the revision greater than all that they knew of the epoch that it ended.
        local told_of = seen_epoch < -base or seen_epoch == -base and seen_revision < revision
        local known = ended or told_of or seen_issued <= math.max(base, 0)
        if known and not (seen_revision > 0 and revision == 0) then
          return false
        end
      end
      if not ended then
        issued = math.max(issued, seen_issued)
      end
      if renewed and revision < seen_revision or revision == 0 and ARGV[6] ~= '1' then
        follow()
      end
    elseif revision < seen_revision or (revision == seen_revision and deleted and ARGV[6] ~= '1') then
      issued, moved = math.max(before, seen_issued), math.max(moved, seen_moved)
      follow()
    elseif not deleted and (issued < seen_issued or moved < seen_moved or (sale and sale.resolved or 0) < seen_resolved) then
      issued, moved = math.max(issued, seen_issued), math.max(moved, seen_moved)
    else
      return false
    end
    -- What is stored as free may have been given since, what is stored as leased may have come back, and what is stored as
    -- held may be resolved.
    forget()
    if sale or seen_resolved > 0 then
      special()
      sale.held, sale.losses, sale.resolved = 0, sale.losses + 1, math.max(sale.resolved, seen_resolved)
    end
    raised = digits(before)
    return true
  end

  -- Do so and keep it; returns whether the counter is lost, and whether it was before.
  function recover()
    local raise, marked, more = ARGV[8] == 'raise', lost, reconcile()
    if more or raise and marked then
      raised = raise and (raised or digits(issued))
      lost = not raise
      renew()
      if not over then
        save()
      end
    end
    return lost, marked
  end

  function missing()
    return epoch and 'MISSING ' .. digits(epoch) .. ' ' .. digits(revision) or 'MISSING'
  end

  -- Renewed before anything else: what was seen of a window that is over is no loss.
  if script ~= 'clock' then
    if renew() then
      save()
    elseif over and not (script == 'look' and ARGV[11] == 'stored') then
      return over
    end
  end
end

-- How many numbers are out on leases that may come back; `own` is what this worker's lease is by now. Leases that nobody
-- will ask for any more are removed. Each name that it captures costs every batch with a lease a little, as above.
local function out(own, own_at)
  local time = redis.call('TIME')
  local now, sum = tonumber(time[1]) * 1000000 + tonumber(time[2]), 0
  if own_at and tonumber(own_at) > now - LEASE_RETURN then
    sum = total(own)
  end
  local fields = listed and listed() or redis.call('HGETALL', KEYS[1])
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
