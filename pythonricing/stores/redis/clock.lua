-- The time by this server's clock, in microseconds. Begins with counter.lua, whose key leads here in a cluster.

local time = redis.call('TIME')
return digits(tonumber(time[1]) * 1000000 + tonumber(time[2]))
