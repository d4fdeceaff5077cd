-- Forget a counter, and leave a tombstone that tells deletion from loss.
--
-- KEYS[1]  the counter (see claim.lua)
-- ARGV[1]  seconds the tombstone is kept
--
-- Replies OK or MISSING.

local stored = redis.call('HMGET', KEYS[1], 'count', 'epoch')
if not stored[1] then
  return 'MISSING'
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'deleted', 1, 'epoch', stored[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'OK'
