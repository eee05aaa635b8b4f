-- ack.lua ends tasks that are done: they leave their streams.
--
-- It returns for each stream how many of its entries were still pending, or an
-- error.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:st
-- ARGV[1..4] how many entries of each stream    ARGV[5..] their IDs, in that order
local out, at, done = {}, 5, 0
for i = 1, 4 do
  local n = tonumber(ARGV[i])
  out[i] = 0
  if n > 0 then
    local last = at + n - 1
    local reply = redis.pcall('XACK', KEYS[i], 'w', unpack(ARGV, at, last))
    if type(reply) == 'table' then
      out[i] = reply.err
    else
      redis.call('XDEL', KEYS[i], unpack(ARGV, at, last))
      out[i] = reply
      done = done + reply
    end
    at = at + n
  end
end
if done > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'acked', done)
end
return out
