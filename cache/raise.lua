-- raise.lua gives the generation in KEYS[1] a new value, which is greater than
-- every one before it and not less than the server's time: what names an older one
-- is over. It returns 1. Calling it again raises it again, which is harmless.
--
-- KEYS[1] generation of a view or a tag
-- ARGV[1] TTL that it has afterwards at least, ms
local time = redis.call("TIME")
local generation = time[1] * 1000000 + time[2]
local old = tonumber(redis.call("GET", KEYS[1]) or "0")
if old and old >= generation then
  generation = old + 1
end
local ttl = math.max(tonumber(ARGV[1]), redis.call("PTTL", KEYS[1]))
redis.call("SET", KEYS[1], string.format("%.0f", generation), "PX", string.format("%.0f", ttl))
return 1
