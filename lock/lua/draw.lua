-- draw.lua is the beginning of what may give a lease.
local fenceLife = '2592000000' -- how long the counters live, milliseconds: 30 days

-- draw returns a fencing token: greater than the last one, and at least the
-- server's time in microseconds, so that it still grows after the counter was lost,
-- or has come back as it once was. It returns its digits, too, if it is given those
-- of the time.
local function draw(counter, now, digits)
  local last = redis.call('SET', counter, digits or now, 'GET', 'PX', fenceLife)
  last = last and tonumber(last)
  if last and last >= now and last < 9007199254740991 then -- else not written here; beyond 2^53 - 1, last + 1 would be last
    now = last + 1
    digits = string.format('%.0f', now)
    redis.call('SET', counter, digits, 'PX', fenceLife)
  end
  return now, digits
end
