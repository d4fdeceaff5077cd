-- Create a counter, change its limit, or start it over.
--
-- KEYS[1]  the counter (see claim.lua)
-- ARGV[1]  limit, or '' to keep the one it has
-- ARGV[2]  what it is: "change" keeps the count (of a lost counter the highest that is known) and "restart" sets it to
--          0, both an operator's word that ends the state of a lost counter; "configure" is the settings' word, which
--          leaves a lost counter lost
--
-- Replies "created epoch limit count", or MISSING, LOST.

local stored = redis.call('HMGET', KEYS[1], 'count', 'limit', 'epoch', 'lost', 'deleted')
local count, limit, epoch, lost, deleted = stored[1], stored[2], tonumber(stored[3]), stored[4], stored[5]
local by_operator = ARGV[2] ~= 'configure'

if lost and not by_operator then
  return 'LOST'
end
if ARGV[1] ~= '' then
  limit = ARGV[1]
elseif not limit then
  return 'MISSING'
end

if count and not lost and ARGV[2] ~= 'restart' then
  redis.call('HSET', KEYS[1], 'limit', limit)
  return string.format('0 %.0f %s %s', epoch, limit, count)
end

local now = redis.call('TIME')
epoch = math.max(tonumber(now[1]) * 1000000 + tonumber(now[2]), (epoch or 0) + 1)
local created = count and 0 or 1
if ARGV[2] == 'restart' or not count then
  count = '0'
elseif lost and tonumber(lost) > tonumber(count) then
  count = lost
end
redis.call('HSET', KEYS[1], 'count', count, 'limit', limit, 'epoch', string.format('%.0f', epoch),
  'origin', (by_operator or deleted) and 'operator' or 'auto')
redis.call('HDEL', KEYS[1], 'lost', 'deleted')
redis.call('PERSIST', KEYS[1])
return string.format('%d %.0f %s %s', created, epoch, limit, count)
