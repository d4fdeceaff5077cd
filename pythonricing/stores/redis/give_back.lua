-- Give numbers back that somebody owns: once, however often it is sent. Follows counter.lua and holds.lua.
--
-- KEYS[2]  the receipt of this word of an operator: its reply
-- ARGV[11] the moment after which it has no effect, in microseconds of this server's clock
-- ARGV[12] seconds a receipt is kept
-- ARGV[13] the numbers, as "first-last,..."
--
-- Replies "given epoch revision limit most count issued moved out sale" (given: how many had not been given back before) and,
-- if a loss raised the numbers issued, "^" and what they were before; or NEVER, if one was never given in the epoch that was
-- seen; LEASED while it may be that a worker has one and will give it; LOST, LATE, MISSING, OVER (see claim.lua).

local receipt = redis.call('GET', KEYS[2])
if receipt then
  redis.call('EXPIRE', KEYS[2], ARGV[12])
  return receipt
end
if now > tonumber(ARGV[11]) then
  return 'LATE'
end

-- Nothing is done, nor later, when what was sent before arrives.
local function nothing(reply)
  redis.call('SET', KEYS[2], reply, 'EX', ARGV[12])
  return reply
end

local gone = recover()
if over then
  return over
elseif gone then
  return nothing('LOST')
elseif deleted or not issued then
  return missing()
end
expire()

local function meet(one, other)
  return one[1] <= other[2] and other[1] <= one[2]
end

local wanted = runs_of(ARGV[13])
for _, run in ipairs(wanted) do
  local never = run[2] > issued or run[1] < 1 or epoch > (tonumber(ARGV[1]) or epoch)
  for _, each in ipairs(free) do
    never = never or meet(run, each)
  end
  if never then
    keep()
    return nothing('NEVER')
  end
end

-- What is on a lease that may come back may be given or not. After that it won't be, and counts for nothing if it comes back.
local cut = {}
for _, worker in ipairs(sale.workers) do
  local lease = redis.call('HGET', KEYS[1], 'lease:' .. worker)
  local at, runs = string.match(lease or '', '^' .. digits(epoch) .. ' (%d+)(.*)$')
  if at then
    local left, met = runs_of(runs), false
    for _, run in ipairs(wanted) do
      for _, each in ipairs(left) do
        if meet(run, each) then
          met = true
          left[#left + 1] = { run[2] + 1, each[2] }
          each[2] = run[1] - 1
        end
      end
    end
    if met and tonumber(at) > now - LEASE_RETURN then
      keep()
      return 'LEASED'
    elseif met then
      local apart = {}
      for _, each in ipairs(left) do
        if each[1] <= each[2] then
          apart[#apart + 1] = each
        end
      end
      cut['lease:' .. worker] = digits(epoch) .. ' ' .. at .. ' ' .. text(sorted(apart))
    end
  end
end
for field, value in pairs(cut) do
  redis.call('HSET', KEYS[1], field, value)
end

take_out(wanted)
local given = 0
for _, run in ipairs(wanted) do
  given = given + mark(run)
end
moved = moved + given
keep()
local reply = string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s', given, epoch, revision, limit, most,
  issued - total(free) - sale.given, issued, moved, out(), told())
if raised then
  reply = reply .. ' ^' .. raised
end
return nothing(reply)
