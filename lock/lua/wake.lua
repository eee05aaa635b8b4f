-- wake.lua hands over what is free and waited for. It follows every release.
--
-- KEYS: n leases, then their queues, then their counters
local n = #KEYS / 3
for i = 1, n do
  wake(KEYS[i], KEYS[n + i], KEYS[2 * n + i])
end
return 0
