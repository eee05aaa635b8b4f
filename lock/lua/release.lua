-- release.lua follows redislock's script, which is the function base here: it
-- hands over what is free now and waited for. It returns what that returns.
--
-- KEYS: n leases, then their queues
-- ARGV[1] redislock's
local n = #KEYS / 2
local reply = base({unpack(KEYS, 1, n)}, ARGV)
if redis.call('EXISTS', unpack(KEYS, n + 1)) == 0 then
  return reply -- nobody waits
end
