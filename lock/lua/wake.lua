-- wake.lua hands over what is free and waited for. It follows every release.
--
-- KEYS: n leases, then their queues
local n = #KEYS / 2
for i = 1, n do
  wake(KEYS[i], KEYS[n + i])
end
return 0
