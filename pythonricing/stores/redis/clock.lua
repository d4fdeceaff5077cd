-- The time by this server's clock, in microseconds. Follows counter.lua, whose key leads here in a cluster.

return digits(time())
