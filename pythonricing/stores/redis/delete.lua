-- Forget a counter, and leave a tombstone that tells deletion from loss.
--
-- KEYS[1]  the counter (see claim.lua)
-- ARGV[1]  seconds the tombstone is kept
--
-- Replies OK or MISSING.

if redis.call('HEXISTS', KEYS[1], 'count') == 0 then
  return 'MISSING'
end
redis.call('HSET', KEYS[1], 'deleted', 1)
redis.call('HDEL', KEYS[1], 'count', 'limit', 'origin', 'lost')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'OK'
