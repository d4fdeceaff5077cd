-- An ordinary batch: plain claims, all of them admitted, on the state that their worker has seen, with no lease and nothing
-- that a sale needs. Executed as claim.lua would do it, before all that only others need is made: this is three fifths of
-- the time.

receipt = redis.call('GET', KEYS[2])
stored = redis.call('HMGET', KEYS[1], 'count', 'limit', 'most', 'epoch', 'revision', 'base', 'lost', 'deleted', 'sale',
  'moved', 'free', 'lease:' .. ARGV[10])
if stored[4] == ARGV[1] and stored[5] == ARGV[2] and not (stored[7] or stored[8] or stored[9] or stored[12])
  and (not stored[11] or stored[11] == stored[4] .. ' ') and not KEYS[3] and ARGV[17] == '0' and ARGV[20] == ''
  and ARGV[9] == '' and (not receipt or tonumber(string.match(receipt, '^%d+')) < tonumber(ARGV[11])) then
  local before, limit, most, moved = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), stored[10] or '0'
  local issued = before
  for i = 21, #ARGV, 2 do
    local size = tonumber(ARGV[i + 1])
    if most == 0 or size <= most then
      issued = issued + tonumber(ARGV[i]) * size
    end
  end
  if before < issued and issued < limit and before >= tonumber(ARGV[3]) and tonumber(moved) >= tonumber(ARGV[7]) then
    local count = string.format('%.0f', issued)
    redis.call('HSET', KEYS[1], 'count', count)
    local reply = string.format('%s %s %s %s %s %s %s %s 0 %.0f-%s - -', ARGV[12], stored[4], stored[5], stored[2],
      stored[3], stored[1], count, moved, before + 1, count)
    redis.call('SET', KEYS[2], ARGV[11] .. ' ' .. reply, 'EX', ARGV[13])
    return reply
  end
end
