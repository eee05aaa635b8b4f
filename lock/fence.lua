-- fence.lua gives the lease on KEYS[1] its fencing token, if the lease is mine.
-- It returns {token, 0}, or {-1, PTTL of KEYS[1]} if the lease is another's
-- (-2 if there is none any more, -1 if it does not expire).
--
-- The token is greater than the last one; and it is at least the server's time,
-- so that it still grows after the counter was lost.
--
-- KEYS[1] lease        KEYS[2] counter: the last token
-- ARGV[1] what the lease holds if it is mine
-- ARGV[2] how long the counter lives, milliseconds
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {-1, redis.call('PTTL', KEYS[1])}
end
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if not (last and last >= 0 and last < 9007199254740991) then
  last = 0 -- not written here; beyond 2^53 - 1, last + 1 would be last
end
local time = redis.call('TIME')
local token = math.max(last + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[2], string.format('%.0f', token), 'PX', ARGV[2])
return {token, 0}
