-- draw.lua is the beginning of every script that may give a lease.
local fenceLife = '2592000000' -- how long the counters live, milliseconds: 30 days

-- draw returns a fencing token: greater than the last one, and at least the
-- server's time in microseconds, so that it still grows after the counter was lost,
-- or has come back as it once was.
local function draw(counter, now)
  local last = tonumber(redis.call('SET', counter, now, 'GET', 'PX', fenceLife) or '0')
  if last and last >= now and last < 9007199254740991 then -- else not written here; beyond 2^53 - 1, last + 1 would be last
    now = last + 1
    redis.call('SET', counter, string.format('%.0f', now), 'PX', fenceLife)
  end
  return now
end
