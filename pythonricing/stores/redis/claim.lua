-- One batch of claims on one counter: executed once, however often it is sent. Follows counter.lua and holds.lua.
--
-- KEYS[2]    the receipt of this worker's last batch: "sequence reply"
-- KEYS[3..]  the idempotency keys, one for each keyed claim in order: "epoch:size:count:limit:admitted" (2: refused because
--            of its claimant's share), and ":runs" where it got several, or ":runs:hold:expires:claimant"
--
-- ARGV[11]   sequence of the batch; 0 reads only and leaves no receipt
-- ARGV[12]   attempt: which composition of the batch this is; from 1 on it is a repeat
-- ARGV[13]   seconds a receipt is kept
-- ARGV[14]   seconds the key of an admitted claim is kept
-- ARGV[15]   seconds the key of a refused claim is kept
-- ARGV[16]   limit with which a missing counter is created, or ''
-- ARGV[17]   how many numbers the worker wants to be lent
-- ARGV[18]   the runs of its lease that it gives back, as "first-last first-last ..."
-- ARGV[19]   the runs of its lease that it still holds
-- ARGV[20]   1 if a claim has a hold or a claimant, or ''
-- ARGV[21..] the claims in arrival order as pairs "times size"; a keyed claim has times 1 and a negative size, and one with
--            a hold or a claimant times 0, the size, negative if it is keyed, and "hold seconds claimant", each perhaps ''
--
-- Replies "attempt epoch revision limit most before issued moved out runs lent sale" (before: the numbers taken before;
-- out: those on leases that may come back, unless every claim was admitted and another one might be; runs and lent:
-- "first-last,..." or "-"; sale: see `told`) and, for each keyed claim, its record or "-" where the key was new, and last, if
-- a loss raised the numbers issued, "^" and what they were before; or LOST, STALE, or MISSING with the epoch and revision
-- of its deletion if that is known; or OVER with the time, every and zone, if the window that contains it is needed.

local sequence = tonumber(ARGV[11])
if sequence > 0 then
  if receipt then
    local last, reply = string.match(receipt, '^(%d+) (.*)$')
    if tonumber(last) == sequence then
      -- A write, so that a WAIT on this connection is about the receipt too, whichever connection it came over.
      redis.call('EXPIRE', KEYS[2], ARGV[13])
      return reply
    elseif tonumber(last) > sequence then
      return 'STALE'
    end
  end
end

if not settled then
  -- Nothing is executed; and if this is a repeat, not later either, when its first copy arrives.
  local function nothing(reply)
    if sequence > 0 and tonumber(ARGV[12]) > 0 then
      redis.call('SET', KEYS[2], ARGV[11] .. ' ' .. reply, 'EX', ARGV[13])
    end
    return reply
  end

  if recover() then
    return nothing('LOST')
  elseif over then
    return over
  end
  if deleted or not issued then
    if ARGV[16] == '' then
      return nothing(missing())
    end
    if deleted then
      revision = revision + 1
    end
    start()
    limit, most = tonumber(ARGV[16]), 0
    save()
  end
end

local lease, lease_at = {}, false -- what this worker holds
local stirred = false -- whether what is free has changed
if stored[12] and sequence > 0 then
  lease_at = string.match(stored[12], '^' .. digits(epoch) .. ' (%d+)')
end

-- What the worker gives back becomes free, as far as it was lent in this state; the rest of what it says counts for
-- nothing, so that no number is free and held.
if lease_at then
  local known = runs_of(string.match(stored[12], ' .*$'))
  local function cut(run)
    local parts, left = {}, {}
    for _, each in ipairs(known) do
      local first, last = math.max(each[1], run[1]), math.min(each[2], run[2])
      if first <= last then
        parts[#parts + 1] = { first, last }
        left[#left + 1], left[#left + 2] = { each[1], first - 1 }, { last + 1, each[2] }
      else
        left[#left + 1] = each
      end
    end
    known = left
    return parts
  end
  for _, back in ipairs(runs_of(ARGV[18])) do
    for _, run in ipairs(cut(back)) do
      free[#free + 1], moved, stirred = run, moved + run[2] - run[1] + 1, true
    end
  end
  for _, still in ipairs(runs_of(ARGV[19])) do
    for _, run in ipairs(cut(still)) do
      lease[#lease + 1] = run
    end
  end
  lease = sorted(lease)
  if stirred then
    free = sorted(free)
  end
end

if sale then
  expire()
end
local given = sale and sale.given or 0
if given > 0 and sequence > 0 then
  limit = math.min(limit, ALL - 1 - given) -- there are no more numbers
end
local top = limit + given -- the highest number that may be given

local take, gather
if free[1] then
  -- Numbers from at most so many free runs, the lowest first, and the rest of them fresh, as far as the limit goes.
  function gather(got, size, at_most)
    while size > 0 and at_most > 0 and free[1] do
      local run = free[1]
      local part = math.min(size, run[2] - run[1] + 1)
      add(got, run[1], run[1] + part - 1)
      run[1], size, at_most = run[1] + part, size - part, at_most - 1
      moved, stirred = moved + part, true
      if run[1] > run[2] then
        table.remove(free, 1)
      end
    end
    local fresh = math.min(size, top - issued)
    if fresh > 0 then
      add(got, issued + 1, issued + fresh)
      issued = issued + fresh
    end
    return got
  end

  -- The numbers of an admitted claim: one run, unless only scattered ones are left.
  function take(size)
    for index, run in ipairs(free) do
      if math.min(run[2], top) - run[1] + 1 >= size then
        local first = run[1]
        run[1], moved, stirred = first + size, moved + size, true
        if run[1] > run[2] then
          table.remove(free, index)
        end
        return { { first, first + size - 1 } }
      end
    end
    return gather({}, size, issued + size <= top and 0 or #free)
  end
end

local known_issued, taken = issued, issued - total(free) - given
local before, runs, records, keyed, waited = taken, {}, {}, 2, false
local place, i, refused = 0, 21, false -- the claims that shares refuse, by their place in a batch with claimants
while i < #ARGV do
  local times, size = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  i, place = i + 2, place + 1
  if times > 0 and size > 0 then
    if (most == 0 or size <= most) and not (sale and sale.each > 0) then
      local admitted = math.max(0, math.min(times, math.floor((limit - taken) / size)))
      taken = taken + admitted * size
      if free[1] then
        for _ = 1, admitted do
          for _, run in ipairs(take(size)) do
            add(runs, run[1], run[2])
          end
        end
      elseif admitted > 0 then
        add(runs, issued + 1, issued + admitted * size)
        issued = issued + admitted * size
      end
      if admitted < times and not waited then
        waited = out(lease, lease_at)
      end
    end
  else
    local id, seconds, claimant, record, new = '', 0, '', false, true
    if times == 0 then
      id, seconds, claimant, i = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], i + 3
    end
    if size < 0 then
      keyed, size, record = keyed + 1, -size, true
      local known = redis.call('GET', KEYS[keyed])
      if known then
        -- Of an earlier window an admission counts, a refusal doesn't.
        local since, was = string.match(known, '^(%d+):%d+:%d+:%d+:(%d)')
        new = tonumber(since) < (sale and was == '1' and sale.began or epoch)
      end
      records[#records + 1] = new and '-' or known
    end
    -- Each claim names a claimant just where there are claimants.
    if new and (most == 0 or size <= most) and (times > 0 or size <= MAX_NUMBERS)
      and (claimant ~= '') == (sale ~= nil and sale.each > 0) then
      local above = times == 0 and capped(claimant, size)
      local admitted, number, several, expires = not above and taken + size <= limit, taken, '', 0
      if admitted then
        local got = take and take(size) or { { issued + 1, issued + size } }
        issued, taken = take and issued or issued + size, taken + size
        for _, run in ipairs(got) do
          add(runs, run[1], run[2])
        end
        number, several = got[#got][2], got[2] and text(got) or ''
        expires = times == 0 and own(got, size, id, seconds, claimant) or 0
      elseif above then
        refused = refused or {}
        refused[#refused + 1] = place - 1
      elseif not waited then
        waited = out(lease, lease_at)
      end
      -- A refusal is remembered once neither a lease nor a hold can make room any more.
      local held = sale and sale.held or 0
      if record and (admitted or above and held == 0 or not above and taken + size - waited - held > limit) then
        local told = string.format('%.0f:%.0f:%.0f:%.0f:%s', epoch, size, number, limit,
          admitted and '1' or above and '2' or '0')
        if several ~= '' or times == 0 then
          told = told .. ':' .. several
        end
        if times == 0 then
          told = string.format('%s:%s:%.0f:%s', told, admitted and id or '', expires, claimant)
        end
        redis.call('SET', KEYS[keyed], told, 'EX', admitted and ARGV[14] or ARGV[15])
      end
    end
  end
end
if not waited and (sequence == 0 or taken >= limit) then
  waited = out(lease, lease_at)
end
if waited and more and sequence > 0 then
  waited = waited + sale.held
end

-- Plenty may be left to be lent.
local lent = {}
local size = math.min(tonumber(ARGV[17]), math.floor((limit - taken) / LEASE_PART))
if size >= LEASE_LEAST and #free <= MAX_FREE
  and not (sale and (sale.each > 0 or 0 < sale.ends and sale.ends <= now + LEASE)) then
  if free[1] then
    gather(lent, size, MAX_LENT)
  else
    lent[1] = { issued + 1, issued + size }
    issued = issued + size
  end
  lease_at = digits(time())
  for _, run in ipairs(lent) do
    lease[#lease + 1] = run
  end
  lease = sorted(lease)
end

if issued > known_issued then
  redis.call('HSET', KEYS[1], 'count', digits(issued))
end
if stirred then
  redis.call('HSET', KEYS[1], 'moved', digits(moved), 'free', digits(epoch) .. ' ' .. text(free))
end
if lease[1] then
  redis.call('HSET', KEYS[1], 'lease:' .. ARGV[10], digits(epoch) .. ' ' .. lease_at .. ' ' .. text(lease))
elseif stored[12] and sequence > 0 then
  redis.call('HDEL', KEYS[1], 'lease:' .. ARGV[10])
end
if sale then
  if lease[1] then
    list_worker()
  end
  keep()
end

-- Mostly as it was stored: that saves a tenth of the script.
local reply = (saved or sale) and { ARGV[12], digits(epoch), digits(revision), digits(limit), digits(most) }
  or { ARGV[12], stored[4], stored[5] or '0', stored[2], stored[3] or '0' }
reply[6] = string.format('%.0f %.0f %.0f %.0f', before, issued, moved, waited or 0)
reply[7] = runs[1] and text(runs) or '-'
reply[8] = lent[1] and text(lent) or '-'
reply[9] = sale and told(refused) or '-'
for _, record in ipairs(records) do
  reply[#reply + 1] = record
end
if raised then
  reply[#reply + 1] = '^' .. raised
end
reply = table.concat(reply, ' ')
if sequence > 0 then
  redis.call('SET', KEYS[2], ARGV[11] .. ' ' .. reply, 'EX', ARGV[13])
end
return reply
