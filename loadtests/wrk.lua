-- For wrk: print what it measured as one line of JSON, and with an argument above 1 spread the claims over that many
-- named counters. `done` runs after the clock has stopped, so the report costs the measurement nothing; the requests
-- for named counters are made before it starts.

function init(args)
  local counters = tonumber(args[1] or 1)
  if counters > 1 then
    local requests, turn = {}, math.random(counters)
    for number = 1, counters do
      requests[number] = wrk.format('POST', '/counters/lab-' .. number)
    end
    function request()
      turn = turn % counters + 1
      return requests[turn]
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nwrk-json {"requests": %d, "seconds": %.6f, "non_2xx": %d, "failures": %d}\n', summary.requests,
    summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
