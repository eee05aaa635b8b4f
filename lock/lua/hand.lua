-- hand.lua is the rest of release.lua.
local n = #KEYS / 3
if not reply then
  reply = base({unpack(KEYS, 1, n)}, ARGV)
else
  if not pcall(hand, KEYS[1], KEYS[2], KEYS[3], first) then -- whatever the counter is, the lease was released
    redis.call('DEL', KEYS[1])
  end
  return reply
end
for i = 1, n do
  pcall(wake, KEYS[i], KEYS[n + i], KEYS[2 * n + i]) -- whatever the queue is, the lease was released
end
return reply
