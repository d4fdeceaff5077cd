-- A counter as it is listed. Follows counter.lua and holds.lua.
--
-- ARGV[11] "stored": as it is, if its window is over and the next one is not known; or ''
--
-- Replies "lost epoch revision limit most count issued moved out sale", where lost is 1 or 0; or GONE; or OVER (see claim.lua).

if deleted and not lost or not issued then
  return 'GONE'
end
if sale and not lost and not over then
  expire()
  keep()
end
return string.format('%d %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s', lost and 1 or 0, epoch, revision, limit, most,
  issued - total(free) - (sale and sale.given or 0), issued, moved, out(), told())
