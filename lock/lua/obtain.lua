-- obtain.lua obtains a lease as redislock's script does, which is the function
-- base behind it, and gives it its fencing token. If the lease is another's, it
-- takes a place in the queue for me, where I want one.
--
-- It returns the token; or {-1, PTTL of the lease, 1 if it may not publish, the
-- server's time in microseconds}. PTTL is -2 if there is no lease any more, -1 if it
-- does not expire, and that of the longest of several.
--
-- KEYS: n leases, then their queues, then their counters
-- ARGV[1] to ARGV[3] redislock's
-- ARGV[4] my entry for the queue of the first; without it I take no place
-- ARGV[5] 'drop' if my entry may be in the queue although I obtain the lease

-- One lock that is free: the most frequent case, without what follows.
if #KEYS == 3 and not ARGV[5] and redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[3]) then
  local time = redis.call('TIME')
  return draw(KEYS[3], time[1] * 1000000 + time[2])
end
