-- Create a counter, change its limit, or start it over: once, however often it is sent. Follows counter.lua and holds.lua.
--
-- KEYS[2]  the receipt of this word of an operator: its reply
-- ARGV[11] the moment after which it has no effect, in microseconds of this server's clock
-- ARGV[12] seconds a receipt is kept
-- ARGV[13] limit, or '' to keep the one it has
-- ARGV[14] the largest claim, 0 for no bound, or '' to keep what it has
-- ARGV[15] how many numbers a claimant may own, 0: no claimants, or '' to keep it
-- ARGV[16] how it renews, "-": not at all, or '' to keep it; ARGV[17] in which time zone, likewise
-- ARGV[18] what it is: "change" keeps the count and ends the state of a lost counter, but not of one of which nobody
--          knew that it is lost; "restart" begins a new epoch at 0; "configure" is the settings' word, which leaves a
--          lost counter lost
--
-- Replies "created epoch revision limit most count issued moved out sale" (see `told`) and, if a loss raised the numbers
-- issued, "^" and what they were before; or LOST, LATE, MISSING, OVER (see claim.lua).

local receipt = redis.call('GET', KEYS[2])
if receipt then
  redis.call('EXPIRE', KEYS[2], ARGV[12])
  return receipt
end
if now > tonumber(ARGV[11]) then
  return 'LATE'
end

local function chosen(given, kept)
  return given == '' and kept or given ~= '-' and given or ''
end

local how = ARGV[18]
if ARGV[16] ~= '' and ARGV[16] ~= '-' and not window(ARGV[16], chosen(ARGV[17], sale and sale.zone or '')) then
  return over -- before anything is kept
end
if how ~= 'restart' then
  local gone, marked = recover()
  if over then
    return over
  elseif gone and (how == 'configure' or not marked) then
    -- With a receipt: sent again, it must not end the loss that it was the first to notice.
    redis.call('SET', KEYS[2], 'LOST', 'EX', ARGV[12])
    return 'LOST'
  end
end

local missed = deleted or not issued
if how == 'restart' and not issued and ARGV[6] == '0' then
  follow() -- what is gone starts over with the rules that were seen
elseif missed then
  if ARGV[13] == '' then
    return missing()
  end
  most = 0
  rule(0, '', '', true)
end

local each, every, zone = sale and sale.each or 0, sale and sale.every or '', sale and sale.zone or ''
local new_limit, new_most, new_each = tonumber(ARGV[13]) or limit, tonumber(ARGV[14]) or most, tonumber(ARGV[15]) or each
local new_every, new_zone = chosen(ARGV[16], every), chosen(ARGV[17], zone)
local otherwise = new_every ~= every or new_zone ~= zone -- it renews in another way
if missed or how == 'restart' then
  revision = (how == 'configure' and not deleted) and 0 or math.max(revision, tonumber(ARGV[2]) or 0) + 1
  start(how == 'restart')
  limit, most = new_limit, new_most
  rule(new_each, new_every, new_zone, true)
elseif lost or new_limit ~= limit or new_most ~= most or new_each ~= each or otherwise then
  if lost then
    base = base < 0 and base or math.max(base, issued)
  end
  lost, limit, most, revision = false, new_limit, new_most, revision + 1
  rule(new_each, new_every, new_zone, otherwise)
  renew()
else
  missed = nil -- nothing changes
end
if over then
  return over
elseif missed ~= nil then
  save()
end
if sale then
  expire()
  keep()
end
local given = sale and sale.given or 0
local reply = string.format('%d %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s', missed and 1 or 0, epoch, revision, limit, most,
  issued - total(free) - given, issued, moved, out(), told())
if raised then
  reply = reply .. ' ^' .. raised
end
redis.call('SET', KEYS[2], reply, 'EX', ARGV[12])
return reply
