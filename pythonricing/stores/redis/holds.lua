-- What becomes of numbers after a claim got them. Follows counter.lua; a translation of counting/holds.py.
--
-- In the counter's hash, beside `sale`:
--   hold:ID      one that is open: "held epoch losses expires size claimant runs"; or how it was resolved: "confirmed epoch
--                until size runs", "released ..." or "expired ..." (seconds; "-" for no claimant and no runs)
--   heap:1..     "second ID" of each hold, a binary heap: when it expires, or once it was resolved, is forgotten; the
--                entry of one that is resolved before it expires stays until that second
--   chunk:N      of the numbers 64 N + 1 to 64 N + 64: "the chunk made before, runs given back, then -,run:ID,run:ID of
--                holds that are open, then run claimant ..."
--   for:CLAIMANT how many numbers a claimant owns
--
-- Numbers, shares and `sale` are written at the end, by `keep`.

local CHUNK = 64
local MAX_NUMBERS, MAX_DUE, RESOLVED = 1024, 128, 86400
local capped, own, expire, resolve, take_out, mark, keep
local due = 0 -- numbers that went back because their holds have expired
local more = false -- whether holds that have expired are left

local told, list_worker
if sale or not settled or ARGV[20] == '1' then
  if script == 'give_back' or script == 'claim' and ARGV[20] == '1' then
    special()
  end
  local chunks, shares = {}, {}

  local function chunk_of(index)
    if not chunks[index] then
      local before, back, holds, owners =
        string.match(redis.call('HGET', KEYS[1], 'chunk:' .. index) or '', '^(%S+) (%S+) (%S+)(.*)$')
      if not before then
        before, sale.chunk = sale.chunk, index
      end
      chunks[index] = { before = before, back = runs_of(back or ''), holds = holds or '-', owners = owners or '' }
    end
    altered = true
    return chunks[index]
  end

  local function share_of(claimant)
    shares[claimant] = shares[claimant] or tonumber(redis.call('HGET', KEYS[1], 'for:' .. claimant)) or 0
    return shares[claimant]
  end

  -- Call act(chunk, first, last) for each chunk that has numbers of a run.
  local function each_chunk(run, act)
    local first = run[1]
    while first <= run[2] do
      local index = math.floor((first - 1) / CHUNK)
      local last = math.min(run[2], (index + 1) * CHUNK)
      act(chunk_of(digits(index)), first, last)
      first = last + 1
    end
  end

  -- The parts of runs that are in none of the others.
  local function without(runs, others)
    for _, other in ipairs(others) do
      local left = {}
      for _, run in ipairs(runs) do
        if run[1] < other[1] then
          left[#left + 1] = { run[1], math.min(run[2], other[1] - 1) }
        end
        if run[2] > other[2] then
          left[#left + 1] = { math.max(run[1], other[2] + 1), run[2] }
        end
      end
      runs = left
    end
    return runs
  end

  -- Give a run back, as far as it was not, to its owners' shares too; returns how many numbers that are.
  function mark(run)
    local given = 0
    each_chunk(run, function(chunk, first, last)
      local new, owners = without({ { first, last } }, chunk.back), {}
      for low, high, claimant in string.gmatch(chunk.owners, ' (%d+)%-(%d+) (%S+)') do
        local left, size = without({ { tonumber(low), tonumber(high) } }, new), high - low + 1
        if total(left) < size then
          shares[claimant] = share_of(claimant) - size + total(left)
        end
        for _, part in ipairs(left) do
          owners[#owners + 1] = string.format(' %.0f-%.0f %s', part[1], part[2], claimant)
        end
      end
      given, chunk.owners = given + total(new), table.concat(owners)
      for _, part in ipairs(new) do
        chunk.back[#chunk.back + 1] = part
      end
      chunk.back = sorted(chunk.back)
    end)
    sale.given = sale.given + given
    return given
  end

  -- Whether a claimant would have more than one may.
  function capped(claimant, size)
    return sale.each > 0 and claimant ~= '' and share_of(claimant) + size > sale.each
  end

  local function push(second, id)
    local place = sale.heap + 1
    sale.heap = place
    while place > 1 do
      local parent = math.floor(place / 2)
      local entry = redis.call('HGET', KEYS[1], 'heap:' .. parent)
      if tonumber(string.match(entry, '^%d+')) <= second then
        break
      end
      redis.call('HSET', KEYS[1], 'heap:' .. place, entry)
      place = parent
    end
    redis.call('HSET', KEYS[1], 'heap:' .. place, digits(second) .. ' ' .. id)
    sale.due = sale.due > 0 and math.min(sale.due, second) or second
  end

  -- Take out the hold that is due first, and return its id.
  local function pop()
    local size = sale.heap - 1
    local top = redis.call('HGET', KEYS[1], 'heap:1')
    local entry = redis.call('HGET', KEYS[1], 'heap:' .. size + 1)
    redis.call('HDEL', KEYS[1], 'heap:' .. size + 1)
    sale.heap, sale.due = size, 0
    if size > 0 then
      local second, place = tonumber(string.match(entry, '^%d+')), 1
      while 2 * place <= size do
        local child = 2 * place
        local both = redis.call('HMGET', KEYS[1], 'heap:' .. child, 'heap:' .. child + 1)
        local one, other = tonumber(string.match(both[1], '^%d+')), both[2] and tonumber(string.match(both[2], '^%d+'))
        if other and other < one then
          child, one, both[1] = child + 1, other, both[2]
        end
        if second <= one then
          break
        end
        redis.call('HSET', KEYS[1], 'heap:' .. place, both[1])
        place = child
      end
      redis.call('HSET', KEYS[1], 'heap:' .. place, entry)
      sale.due = tonumber(string.match(place == 1 and entry or redis.call('HGET', KEYS[1], 'heap:1'), '^%d+'))
    end
    return string.match(top, ' (.*)$')
  end

  local function write(id, found)
    local record
    if found.till then
      record = string.format('%s %.0f %.0f %.0f %s', found.outcome, found.epoch, found.till, found.size,
        found.runs[1] and text(found.runs) or '-')
    else
      record = string.format('held %.0f %.0f %.0f %.0f %s %s', found.epoch, sale.losses, found.expires, found.size,
        found.claimant, text(found.runs))
    end
    redis.call('HSET', KEYS[1], 'hold:' .. id, record)
  end

  -- Note whose the numbers of an admitted claim are, and its hold; returns the second at which that expires.
  function own(runs, size, id, seconds, claimant)
    for _, run in ipairs(runs) do
      each_chunk(run, function(chunk, first, last)
        if claimant ~= '' then
          chunk.owners = chunk.owners .. string.format(' %.0f-%.0f %s', first, last, claimant)
        end
        if id ~= '' then
          chunk.holds = chunk.holds .. string.format(',%.0f-%.0f:%s', first, last, id)
        end
      end)
    end
    if claimant ~= '' then
      shares[claimant] = share_of(claimant) + size
    end
    if id == '' then
      return 0
    end
    local expires = math.floor(now / 1000000) + seconds + 1
    write(id, { epoch = epoch, expires = expires, size = size, claimant = claimant ~= '' and claimant or '-', runs = runs })
    push(expires, id)
    sale.held, altered = sale.held + size, true
    return expires
  end

  -- What is known of a hold, or nil.
  local function hold(id)
    local record = redis.call('HGET', KEYS[1], 'hold:' .. id)
    if not record then
      return nil
    end
    local outcome, begun, rest = string.match(record, '^(%S+) (%d+) (.*)$')
    local found = { outcome = outcome, epoch = tonumber(begun) }
    if outcome == 'held' then
      local losses, expires, size, claimant, runs = string.match(rest, '^(%d+) (%d+) (%d+) (%S+) (%S+)$')
      found.expires, found.size, found.claimant, found.runs = tonumber(expires), tonumber(size), claimant, runs_of(runs)
      found.open = found.epoch >= sale.began and tonumber(losses) == sale.losses
    else
      local till, size, runs = string.match(rest, '^(%d+) (%d+) (%S+)$')
      found.till, found.size, found.runs = tonumber(till), tonumber(size), runs_of(runs)
    end
    return found
  end

  -- A hold is none of those any more that chunks name.
  local function unlist(id, runs)
    for _, run in ipairs(runs) do
      each_chunk(run, function(chunk)
        chunk.holds = string.gsub(chunk.holds, ',%d+%-%d+:([^,]+)', function(other)
          return other == id and '' or nil
        end)
      end)
    end
  end

  -- Resolve a hold and keep its first numbers; the others go back, if the window is still its own.
  local function settle(id, found, outcome, kept, second)
    local runs, left = {}, kept
    for _, run in ipairs(found.runs) do
      local part = math.min(left, run[2] - run[1] + 1)
      left = left - part
      if part > 0 then
        runs[#runs + 1] = { run[1], run[1] + part - 1 }
      end
      if found.epoch == epoch and run[1] + part <= run[2] then
        mark({ run[1] + part, run[2] })
      end
    end
    if found.epoch == epoch then
      sale.held = sale.held - found.size
      unlist(id, found.runs)
    end
    moved, altered = moved + found.size, true
    found.outcome, found.runs, found.till = outcome, runs, second + RESOLVED
    write(id, found)
  end

  -- Give back the numbers of holds that have expired, and forget those that were resolved long ago.
  function expire()
    local second, done = math.floor(now / 1000000), 0
    while sale.heap > 0 and sale.due <= second and done < MAX_DUE do
      local id = pop()
      local found = hold(id)
      if found and found.open then
        due = due + found.size
        settle(id, found, 'expired', 0, found.expires)
        done = done + 0.75
      end
      if found and found.till and found.till > second then
        push(found.till, id)
      else
        redis.call('HDEL', KEYS[1], 'hold:' .. id)
      end
      altered, done = true, done + 0.25 -- most of the work is what goes back
    end
    more = sale.heap > 0 and sale.due <= second and sale.held > 0
  end

  -- Confirm so many numbers of a hold, or all, or release it; returns what became of it, or nil if it is unknown.
  function resolve(id, action, number)
    local found = hold(id)
    if not found or found.epoch < sale.began or found.outcome == 'held' and not found.open then
      return nil
    end
    if found.outcome ~= 'held' then
      write(id, found) -- so that a WAIT on this connection is about it
    elseif found.expires * 1000000 <= now then
      settle(id, found, 'expired', 0, found.expires)
    else
      local size = action == 'confirm' and (number or found.size) or 0
      if size <= found.size then
        settle(id, found, action == 'confirm' and 'confirmed' or 'released', size, math.floor(now / 1000000))
        sale.resolved = sale.resolved + 1
      else
        found.runs = {}
      end
    end
    return found
  end

  -- Take numbers that an operator gives back out of the holds that have them; one that has no others is released.
  function take_out(wanted)
    local met = {}
    for _, run in ipairs(wanted) do
      each_chunk(run, function(chunk, first, last)
        for low, high, id in string.gmatch(chunk.holds, ',(%d+)%-(%d+):([^,]+)') do
          met[id] = met[id] or tonumber(low) <= last and first <= tonumber(high)
        end
      end)
    end
    for id, meets in pairs(met) do
      local found = meets and hold(id)
      if found and found.open then
        local runs = found.runs
        found.runs = without(runs, wanted)
        sale.held, found.size = sale.held - found.size + total(found.runs), total(found.runs)
        if found.runs[1] then
          write(id, found)
        else
          unlist(id, runs)
          settle(id, found, 'released', 0, math.floor(now / 1000000))
          sale.resolved = sale.resolved + 1
        end
      end
    end
  end

  -- Write what has changed.
  function keep()
    if altered then
      for index, chunk in pairs(chunks) do
        redis.call('HSET', KEYS[1], 'chunk:' .. index,
          chunk.before .. ' ' .. (chunk.back[1] and text(chunk.back) or '-') .. ' ' .. chunk.holds .. chunk.owners)
      end
      for claimant, share in pairs(shares) do
        if share > 0 then
          redis.call('HSET', KEYS[1], 'for:' .. claimant, digits(share))
        else
          redis.call('HDEL', KEYS[1], 'for:' .. claimant)
        end
      end
      save_sale()
    end
  end

  -- This worker has a lease.
  function list_worker()
    for _, worker in ipairs(sale.workers) do
      if worker == ARGV[10] then
        return
      end
    end
    sale.workers[#sale.workers + 1], altered = ARGV[10], true
  end

  -- What a reply tells of all this; `refused`: the claims that their claimants' shares refuse. One word.
  function told(refused)
    if not sale then
      return '-'
    end
    local told_now, held = sale.ends > 0 or sale.held > 0, sale.held > 0
    return string.format('%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%s:%s:%s', sale.each, sale.ends, sale.resolved, sale.held,
      sale.given, held and sale.due or 0, told_now and now or 0, due, sale.every, sale.zone, table.concat(refused or {}, ','))
  end
end
