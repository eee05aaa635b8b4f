-- hand.lua is the rest of release.lua.
local n = #KEYS / 2
reply = reply or base({unpack(KEYS, 1, n)}, ARGV)
for i = 1, n do
  pcall(wake, KEYS[i], KEYS[n + i]) -- whatever the queue is, the lease was released
end
return reply
