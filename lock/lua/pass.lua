-- pass.lua gives up what a token may have: leases and a place in the queue. What becomes free is handed over. It
-- returns {how many leases were deleted, what wake.lua returns}.
--
-- KEYS: n leases, then their queues, then their counters
-- ARGV[1] the token; all tokens are of one length, so a prefix tells whose a lease is
-- ARGV[2] the entry in the queue of the first, '' if there is none
local n = #KEYS / 3
if ARGV[2] ~= '' then
  redis.call('LREM', KEYS[n + 1], 0, ARGV[2])
end
local deleted = 0
for i = 1, n do
  if redis.call('GETRANGE', KEYS[i], 0, #ARGV[1] - 1) == ARGV[1] then
    deleted = deleted + redis.call('DEL', KEYS[i])
  end
end
local longest = 0
for i = 1, n do
  longest = math.max(longest, wake(KEYS[i], KEYS[n + i], KEYS[2 * n + i]))
end
return {deleted, longest}
