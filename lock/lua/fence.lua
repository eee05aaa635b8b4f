-- fence.lua gives a lease its fencing token, if the lease is mine. If it is
-- another's, it takes a place in the queue for me, where I want one.
--
-- It returns {token, the server's time, 0}; or {-1, PTTL of the lease, 1 if it
-- may not publish}. PTTL is -2 if there is no lease any more, -1 if it
-- does not expire, and that of the longest of several.
--
-- The token is greater than the last one; and it is at least the server's time
-- in microseconds, so that it still grows after the counter was lost.
--
-- KEYS: n leases, then their counters, then their queues
-- ARGV[1] what the leases hold if they are mine
-- ARGV[2] how long the counters live, milliseconds
-- ARGV[3] my entry for the queue of the first, '' for none
-- ARGV[4] how long the queue lives, milliseconds
-- ARGV[5] 1 if the entry may be in the queue although I have the lease
-- and the three of queue.lua
local n = #KEYS / 3
local mine = true
for i = 1, n do
  mine = mine and redis.call('GET', KEYS[i]) == ARGV[1]
end
if not mine then
  local refused = 0
  if ARGV[3] ~= '' then
    join(KEYS[2 * n + 1], ARGV[3], ARGV[4])
    refused = wake(KEYS[1], KEYS[2 * n + 1])
  end
  local left = -2
  for i = 1, n do
    local pttl = redis.call('PTTL', KEYS[i])
    if left ~= -1 and (pttl == -1 or pttl > left) then
      left = pttl
    end
  end
  return {-1, left, refused}
end
local token = 0
for i = n + 1, 2 * n do
  local last = tonumber(redis.call('GET', KEYS[i]) or '0')
  if last and last >= 0 and last < 9007199254740991 then -- else not written here; beyond 2^53 - 1, last + 1 would be last
    token = math.max(token, last)
  end
end
if ARGV[5] == '1' then
  redis.call('LREM', KEYS[2 * n + 1], 0, ARGV[3])
end
local now = clock()
token = math.max(token + 1, now)
for i = n + 1, 2 * n do
  redis.call('SET', KEYS[i], string.format('%.0f', token), 'PX', ARGV[2])
end
return {token, now, 0}
