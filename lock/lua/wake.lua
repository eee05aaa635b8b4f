-- wake.lua hands over what is free and waited for. Who stands by calls it. It
-- returns how long a lease lives that was handed over, until it is renewed, in
-- milliseconds; 0 if none was.
--
-- KEYS: n leases, then their queues, then their counters
local n = #KEYS / 3
local longest = 0
for i = 1, n do
  longest = math.max(longest, wake(KEYS[i], KEYS[n + i], KEYS[2 * n + i]))
end
return longest
