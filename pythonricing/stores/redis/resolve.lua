-- Confirm or release a hold: once, whatever is said how often; so there is no receipt. Follows counter.lua and holds.lua.
--
-- ARGV[11] the moment after which it has no effect, in microseconds of this server's clock
-- ARGV[12] the id of the hold
-- ARGV[13] "confirm" or "release"
-- ARGV[14] how many of its numbers are confirmed, the others go back; or '': all
--
-- Replies "outcome size runs epoch revision limit most count issued moved out sale", where the outcome is that of the first
-- time (see holds.lua), "held" if it has fewer numbers than should be confirmed, or "none" if no such hold is known; runs
-- are the numbers confirmed or "-"; the outcome ends with "+" if it is of this time; and last, if a loss raised the numbers issued, "^" and what they were before. Or LOST,
-- LATE, MISSING, OVER (see claim.lua).

if now > tonumber(ARGV[11]) then
  return 'LATE'
end
local gone = recover()
if over then
  return over
elseif gone then
  return 'LOST'
elseif deleted or not issued then
  return missing()
end

local found, before
if sale then
  expire()
  before = sale.resolved
  found = resolve(ARGV[12], ARGV[13], tonumber(ARGV[14]))
  keep()
end
local reply = found and string.format('%s%s %.0f %s', found.outcome, sale.resolved > before and '+' or '', found.size,
    found.runs[1] and text(found.runs) or '-')
  or 'none 0 -'
reply = reply .. string.format(' %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s', epoch, revision, limit, most,
  issued - total(free) - (sale and sale.given or 0), issued, moved, out(), told())
return raised and reply .. ' ^' .. raised or reply
