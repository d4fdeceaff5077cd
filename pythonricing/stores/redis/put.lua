-- Create a counter, change its limit, or start it over: once, however often it is sent. Begins with counter.lua.
--
-- KEYS[2]  the receipt of this word of an operator: its reply
-- ARGV[11] the moment after which it has no effect, in microseconds of this server's clock
-- ARGV[12] seconds a receipt is kept
-- ARGV[13] limit, or '' to keep the one it has
-- ARGV[14] the largest claim, 0 for no bound, or '' to keep what it has
-- ARGV[15] what it is: "change" keeps the count and ends the state of a lost counter, but not of one of which nobody
--          knew that it is lost; "restart" begins a new epoch at 0; "configure" is the settings' word, which leaves a
--          lost counter lost
--
-- Replies "created epoch revision limit most count issued moved out" and, if a loss raised the numbers issued, "^" and what
-- they were before; or LOST,
-- LATE, MISSING (see claim.lua).

local receipt = redis.call('GET', KEYS[2])
if receipt then
  redis.call('EXPIRE', KEYS[2], ARGV[12])
  return receipt
end
local now = redis.call('TIME')
if tonumber(now[1]) * 1000000 + tonumber(now[2]) > tonumber(ARGV[11]) then
  return 'LATE'
end

local how = ARGV[15]
local created = 0
if how == 'restart' then
  limit = limit or ARGV[6] ~= '1' and tonumber(ARGV[4])
else
  local gone, marked = recover()
  if gone and (how == 'configure' or not marked) then
    -- With a receipt: sent again, it must not end the loss that it was the first to notice.
    redis.call('SET', KEYS[2], 'LOST', 'EX', ARGV[12])
    return 'LOST'
  end
end
if ARGV[13] == '' and (deleted or not limit) then
  return missing()
end
local new_limit, new_most = tonumber(ARGV[13]) or limit, tonumber(ARGV[14]) or most
local missed = deleted or not issued
if missed or how == 'restart' then
  created = missed and 1 or 0
  revision = (how == 'configure' and not deleted) and 0 or math.max(revision, tonumber(ARGV[2]) or 0) + 1
  start(how == 'restart')
  limit, most = new_limit, missed and (tonumber(ARGV[14]) or 0) or new_most
  save()
elseif lost or new_limit ~= limit or new_most ~= most then
  if lost then
    base = base < 0 and base or math.max(base, issued)
  end
  lost, limit, most, revision = false, new_limit, new_most, revision + 1
  save()
end
local reply = string.format('%d %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f',
  created, epoch, revision, limit, most, issued - total(free), issued, moved, out())
if raised then
  reply = reply .. ' ^' .. raised
end
redis.call('SET', KEYS[2], reply, 'EX', ARGV[12])
return reply
