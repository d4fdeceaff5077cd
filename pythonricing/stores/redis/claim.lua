-- One batch of claims on one counter: executed once, however often it is sent.
--
-- KEYS[1]    the counter, a hash: count, limit, epoch (microseconds), origin (operator or auto),
--            lost (the count that a worker knew when the data turned out to be gone or too old);
--            or its tombstone: deleted, epoch
-- KEYS[2]    the receipt of this worker's last batch: "sequence reply"
-- KEYS[3..]  the idempotency keys, one for each keyed claim in order: "epoch:size:count:limit:admitted"
--
-- ARGV[1]    sequence of the batch; 0 reads only and leaves no receipt
-- ARGV[2]    attempt: which composition of the batch this is
-- ARGV[3]    seconds a receipt is kept
-- ARGV[4]    seconds an idempotency key is kept
-- ARGV[5]    limit with which a missing counter is created, or ''
-- ARGV[6..8] epoch, count and limit that the worker has seen, or '' each
-- ARGV[9]    what a loss does: "halt" marks the counter as lost; "raise" lifts it to what is known of it
-- ARGV[10..] the claims in arrival order as pairs "times size"; a keyed claim has times 1 and a negative size
--
-- Replies "attempt epoch limit before" and, for each keyed claim, its record or "-" where the key was new, and last, if
-- a loss raised the count, "^" and the count before; or MISSING, LOST, STALE.
-- Numbers stay exact up to 2^53 ('%.0f': Lua's own conversion keeps 14 digits).
--
-- No key is ever deleted and written again: while a cluster moves the slot, a key that is gone can't come back here.

local function digits(number)
  return string.format('%.0f', number)
end

local sequence = tonumber(ARGV[1])
if sequence > 0 then
  local receipt = redis.call('GET', KEYS[2])
  if receipt then
    local last, reply = string.match(receipt, '^(%d+) (.*)$')
    if tonumber(last) == sequence then
      -- A write, so that a WAIT on this connection is about the receipt too, whichever connection it came over.
      redis.call('EXPIRE', KEYS[2], ARGV[3])
      return reply
    elseif tonumber(last) > sequence then
      return 'STALE'
    end
  end
end

local stored = redis.call('HMGET', KEYS[1], 'count', 'limit', 'epoch', 'origin', 'lost', 'deleted')
local count, limit, epoch = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3])
local origin, lost, deleted = stored[4], stored[5], stored[6]
local seen_epoch, seen_count = tonumber(ARGV[6]), tonumber(ARGV[7])

local raise, raised = ARGV[9] == 'raise', false

if lost and raise then
  raised = digits(count)
  count, lost = math.max(count, tonumber(lost)), false
end
if not lost and seen_epoch then
  local older = epoch and epoch < seen_epoch
  if older then
    lost = true
  elseif not count then
    lost = not deleted
  elseif epoch == seen_epoch then
    lost = count < seen_count
  else
    -- Nobody deleted or reset it, and yet it began anew: whoever created it knew nothing of the numbers given before.
    lost = origin ~= 'operator' and seen_count > (raise and count or 0)
  end
  if lost and raise then
    raised = raised or digits(count or 0)
    if older or not count then
      -- Not the operator's, as far as is known: workers that have seen more of another epoch may raise it further.
      limit, epoch, origin = tonumber(ARGV[8]), seen_epoch, 'auto'
    end
    count, lost = seen_count, false
  elseif lost then
    redis.call('HSET', KEYS[1], 'lost', ARGV[7], 'count', digits(count or 0), 'limit', digits(limit or ARGV[8]),
      'epoch', digits(math.max(epoch or 0, seen_epoch)))
    redis.call('PERSIST', KEYS[1])
  end
end
if lost then
  return 'LOST'
end
if raised then
  redis.call('HSET', KEYS[1], 'count', digits(count), 'limit', digits(limit), 'epoch', digits(epoch),
    'origin', origin or 'auto')
  redis.call('HDEL', KEYS[1], 'lost', 'deleted')
  redis.call('PERSIST', KEYS[1])
end

if not count then
  if ARGV[5] == '' then
    return 'MISSING'
  end
  local now = redis.call('TIME')
  epoch = math.max(tonumber(now[1]) * 1000000 + tonumber(now[2]), (epoch or 0) + 1)
  count, limit = 0, tonumber(ARGV[5])
  redis.call('HSET', KEYS[1], 'count', 0, 'limit', ARGV[5], 'epoch', digits(epoch),
    'origin', deleted and 'operator' or 'auto')
  redis.call('HDEL', KEYS[1], 'deleted')
  redis.call('PERSIST', KEYS[1])
end

local reply = { ARGV[2], digits(epoch), digits(limit), digits(count) }
local before, keyed = count, 2
for i = 10, #ARGV, 2 do
  local times, size = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if size > 0 then
    if count < limit then
      count = count + size * math.min(times, math.floor((limit - count) / size))
    end
  else
    keyed = keyed + 1
    local record = redis.call('GET', KEYS[keyed])
    if record and string.match(record, '^%d+') == digits(epoch) then
      reply[#reply + 1] = record
    else
      local admitted = count - size <= limit
      if admitted then
        count = count - size
      end
      redis.call('SET', KEYS[keyed], table.concat(
        { digits(epoch), digits(-size), digits(count), digits(limit), admitted and '1' or '0' }, ':'), 'EX', ARGV[4])
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
  redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. reply, 'EX', ARGV[3])
end
return reply
