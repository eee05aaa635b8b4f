-- rest.lua is the rest of release.lua.
local n = #KEYS / 3
local reply = base({unpack(KEYS, 1, n)}, ARGV)
local longest = 0
for i = 1, n do
  local worked, life = pcall(wake, KEYS[i], KEYS[n + i], KEYS[2 * n + i]) -- whatever the queue is, the lease was released
  if worked then
    longest = math.max(longest, life)
  end
end
return reply and longest > 0 and longest or reply
