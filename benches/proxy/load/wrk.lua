-- The requests of row w2, and the check of every answer: status 200 and 1 KiB of the letter of region `eu`.
-- usage: wrk … -s wrk.lua URL -- REQUESTS

local requests, at = {}, 0
local answer = string.rep("e", 1024)
local threads = {}
wrong = 0

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  for line in io.lines(arguments[1]) do
    local path, address, user, region = line:match("(.-)\t(.-)\t(.-)\t(.*)")
    table.insert(requests, wrk.format("GET", path, {
      ["Host"] = "app.example.com",
      ["User-Agent"] = "bench/1.0",
      ["Accept"] = "application/json",
      ["X-Forwarded-For"] = address,
      ["X-User-Id"] = user,
      ["Bench-Region"] = region,
    }))
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function response(status, headers, body)
  if status ~= 200 or body ~= answer then
    wrong = wrong + 1
  end
end

function done(summary)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  for _, thread in ipairs(threads) do
    failed = failed + thread:get("wrong")
  end
  io.write(string.format("done requests=%d wrong=%d\n", summary.requests, failed))
end
