-- count.lua counts the tasks of a partition.
--
-- It returns {ready, in flight, delayed, dead}.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:z  KEYS[6] T:dl
local all, pending = 0, 0
for i = 1, 4 do
  all = all + redis.call('XLEN', KEYS[i])
  local reply = redis.pcall('XPENDING', KEYS[i], 'w')
  if not reply.err then
    pending = pending + reply[1]
  end
end
return {all - pending, pending, redis.call('ZCARD', KEYS[5]), redis.call('ZCARD', KEYS[6])}
