-- One batch of claims on one counter: executed once, however often it is sent. Begins with counter.lua.
--
-- KEYS[2]    the receipt of this worker's last batch: "sequence reply"
-- KEYS[3..]  the idempotency keys, one for each keyed claim in order: "epoch:size:count:limit:admitted"
--
-- ARGV[9]    sequence of the batch; 0 reads only and leaves no receipt
-- ARGV[10]   attempt: which composition of the batch this is; from 1 on it is a repeat
-- ARGV[11]   seconds a receipt is kept
-- ARGV[12]   seconds the key of an admitted claim is kept
-- ARGV[13]   seconds the key of a refused claim is kept
-- ARGV[14]   limit with which a missing counter is created, or ''
-- ARGV[15..] the claims in arrival order as pairs "times size"; a keyed claim has times 1 and a negative size
--
-- Replies "attempt epoch revision limit most before" and, for each keyed claim, its record or "-" where the key was new,
-- and last, if a loss raised the count, "^" and the count before; or LOST, STALE, or MISSING with the epoch and revision
-- of its deletion if that is known.

local sequence = tonumber(ARGV[9])
if sequence > 0 then
  local receipt = redis.call('GET', KEYS[2])
  if receipt then
    local last, reply = string.match(receipt, '^(%d+) (.*)$')
    if tonumber(last) == sequence then
      -- A write, so that a WAIT on this connection is about the receipt too, whichever connection it came over.
      redis.call('EXPIRE', KEYS[2], ARGV[11])
      return reply
    elseif tonumber(last) > sequence then
      return 'STALE'
    end
  end
end

if not settled then
  -- Nothing is executed; and if this is a repeat, not later either, when its first copy arrives.
  local function nothing(reply)
    if sequence > 0 and tonumber(ARGV[10]) > 0 then
      redis.call('SET', KEYS[2], ARGV[9] .. ' ' .. reply, 'EX', ARGV[11])
    end
    return reply
  end

  if recover() then
    return nothing('LOST')
  end
  if deleted or not count then
    if ARGV[14] == '' then
      return nothing(missing())
    end
    if deleted then
      revision = revision + 1
    end
    start()
    limit, most = tonumber(ARGV[14]), 0
    save()
  end
end

-- Mostly as it was stored: that saves a tenth of the script.
local reply = saved and { ARGV[10], digits(epoch), digits(revision), digits(limit), digits(most), digits(count) }
  or { ARGV[10], stored[4], stored[5] or '0', stored[2], stored[3] or '0', stored[1] }
local before, keyed = count, 2
for i = 15, #ARGV, 2 do
  local times, size = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if size > 0 then
    if count < limit and (most == 0 or size <= most) then
      count = count + size * math.min(times, math.floor((limit - count) / size))
    end
  else
    keyed, size = keyed + 1, -size
    local record = redis.call('GET', KEYS[keyed])
    if record and string.match(record, '^%d+') == reply[2] then
      reply[#reply + 1] = record
    else
      if most == 0 or size <= most then
        local admitted = count + size <= limit
        if admitted then
          count = count + size
        end
        redis.call('SET', KEYS[keyed], table.concat(
          { digits(epoch), digits(size), digits(count), digits(limit), admitted and '1' or '0' }, ':'),
          'EX', admitted and ARGV[12] or ARGV[13])
      end
      reply[#reply + 1] = '-'
    end
  end
end

if count > before then
  redis.call('HSET', KEYS[1], 'count', digits(count))
end
if raised then
  reply[#reply + 1] = '^' .. raised
end
reply = table.concat(reply, ' ')
if sequence > 0 then
  redis.call('SET', KEYS[2], ARGV[9] .. ' ' .. reply, 'EX', ARGV[11])
end
return reply
