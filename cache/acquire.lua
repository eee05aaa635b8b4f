-- acquire.lua takes the load lease on KEYS[1], unless the key holds something
-- that stands: a value, an absence, another's lease, a tombstone. What the
-- caller has read and judged dead does not stand, as long as it is unchanged.
-- It returns the server's time in µs if the caller holds the lease, else what the
-- key holds.
-- Calling it again with the same lease is harmless.
--
-- KEYS[1] key
-- ARGV[1] lease: C1 13 and the caller's token
-- ARGV[2] TTL of the lease, ms
-- ARGV[3] SHA-1 of the dead bytes in hex, or ""
local held = redis.call("GET", KEYS[1])
if held and held ~= ARGV[1] and (ARGV[3] == "" or redis.sha1hex(held) ~= ARGV[3]) then
  return held
end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
local time = redis.call("TIME")
return time[1] * 1000000 + time[2]
