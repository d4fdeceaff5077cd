-- Forget a counter, and leave a tombstone that tells deletion from loss: once, however often it is sent. Follows
-- counter.lua and holds.lua.
--
-- KEYS[2]  the receipt of this word of an operator: its reply
-- ARGV[11] the moment after which it has no effect, in microseconds of this server's clock
-- ARGV[12] seconds a receipt is kept
--
-- Replies "epoch revision" of the deletion; or LATE, or MISSING with that of an earlier one if it is known.

local receipt = redis.call('GET', KEYS[2])
if receipt then
  redis.call('EXPIRE', KEYS[2], ARGV[12])
  return receipt
end
if now > tonumber(ARGV[11]) then
  return 'LATE'
end

reconcile()
if (deleted or not issued) and not lost then
  return missing()
end
issued, moved, limit, most, base, revision = 0, 0, 0, 0, ALL, revision + 1
rule(0, '', '', true)
clear()
if sale then
  sale.began, sale.resolved = epoch, 0
end
forget()
lost, deleted = false, true
save()
local reply = digits(epoch) .. ' ' .. digits(revision)
redis.call('SET', KEYS[2], reply, 'EX', ARGV[12])
return reply
