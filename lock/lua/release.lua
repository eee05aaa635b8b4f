-- release.lua releases a lease as redislock's script does, which is the function
-- base behind it, and hands over what is free then and waited for. It returns
-- what that returns; or, if it handed a lock over, how long that lease lives until
-- it is renewed, in milliseconds.
--
-- KEYS: n leases, then their queues, then their counters
-- ARGV[1] redislock's
local first

-- One lock: the most frequent case, mostly without what follows.
if #KEYS == 3 and redis.pcall('GET', KEYS[1]) == ARGV[1] then
  first = redis.pcall('LPOP', KEYS[2])
  if type(first) ~= 'string' then
    redis.call('DEL', KEYS[1])
    return redis.status_reply('OK')
  end
end
