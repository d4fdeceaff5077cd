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
  local percentiles = {}
  for _, p in ipairs({1, 5, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.99}) do
    percentiles[#percentiles + 1] = string.format('[%g, %.3f]', p, latency:percentile(p) / 1000)
  end
  local errors = summary.errors
  io.write(string.format(
    '\nwrk-json {"requests": %d, "seconds": %.6f, "mean_ms": %.4f, "max_ms": %.3f, "non_2xx": %d, ' ..
    '"failures": %d, "percentiles": [%s]}\n',
    summary.requests, summary.duration / 1e6, latency.mean / 1000, latency.max / 1000, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, table.concat(percentiles, ', ')))
end
