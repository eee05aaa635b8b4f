-- wait.lua sees to it that waiters have their places in a queue, but for the one
-- who has the lock, and hands the lock over if it is free. It returns {how many
-- places were missing, PTTL of the lease, 1 if it may not publish, the server's
-- time in microseconds, which of the entries is his who has the lock, 0 if none is}.
--
-- KEYS[1] lease        KEYS[2] queue        KEYS[3] counter
-- ARGV entries, in their order
local now = clock()
local has = redis.call('GETRANGE', KEYS[1], 0, 22)
local missing, his = 0, 0
for i = 1, #ARGV do
  if string.sub(ARGV[i], 1, 23) == has then
    his = i
  else
    missing = missing + join(KEYS[2], ARGV[i])
  end
end
local refused = wake(KEYS[1], KEYS[2], KEYS[3]) == -1 and 1 or 0
return {missing, redis.call('PTTL', KEYS[1]), refused, now, his}
