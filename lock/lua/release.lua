-- release.lua releases a lease as redislock's script does, which is the function
-- base behind it, and hands over what is free then and waited for. It returns
-- what that returns.
--
-- KEYS: n leases, then their queues
-- ARGV[1] redislock's
local reply

-- One lock: the most frequent case, mostly without what follows.
if #KEYS == 2 and redis.pcall('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  reply = redis.status_reply('OK')
  if redis.call('EXISTS', KEYS[2]) == 0 then
    return reply
  end
end
