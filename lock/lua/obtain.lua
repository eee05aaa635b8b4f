-- obtain.lua obtains a lease as redislock's script does, which is the function
-- base behind it, and gives it its fencing token. If the lease is another's, it
-- takes a place in the queue for me, where I want one.
--
-- It returns the token; or {token, the server's time}, if I was called from the
-- queue; or {-1, PTTL of the lease, 1 if it may not publish}. PTTL is -2 if there is no
-- lease any more, -1 if it does not expire, and that of the longest of several.
--
-- The token is greater than the last one; and it is at least the server's time
-- in microseconds, so that it still grows after the counter was lost, or has come
-- back as it once was.
--
-- KEYS: n leases, then their queues, then their counters
-- ARGV[1] to ARGV[3] redislock's
-- ARGV[4] my entry for the queue of the first; without it I take no place
-- ARGV[5] 'called' if I was called from the queue; 'drop' if my entry may be in
--         the queue although I obtain the lease
local fenceLife = '2592000000' -- how long the counters live, milliseconds: 30 days

-- One lock that is free: the most frequent case, without what follows.
if #KEYS == 3 and not ARGV[5] and redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[3]) then
  local time = redis.call('TIME')
  local token = time[1] * 1000000 + time[2]
  local last = tonumber(redis.call('SET', KEYS[3], token, 'GET', 'PX', fenceLife) or '0')
  if last and last >= token and last < 9007199254740991 then
    token = last + 1
    redis.call('SET', KEYS[3], string.format('%.0f', token), 'PX', fenceLife)
  end
  return token
end
