-- generation.lua returns the generation in KEYS[1], as decimal digits, and sees to
-- it that it lives for a while. If there is none, it makes one, which is a little in
-- the past: what was loaded before does not look outdated. Calling it again is
-- harmless.
--
-- KEYS[1] generation of a view or a tag
-- ARGV[1] the one to be made; "": two seconds before the server's time
-- ARGV[2] TTL that it has afterwards at least, ms
local ttl = tonumber(ARGV[2])
local generation = redis.call("GET", KEYS[1])
if generation then
  if redis.call("PTTL", KEYS[1]) < ttl then -- doubled, so that this is done seldom
    redis.call("PEXPIRE", KEYS[1], string.format("%.0f", 2 * ttl))
  end
  return generation
end
generation = ARGV[1]
if generation == "" then
  local time = redis.call("TIME")
  generation = string.format("%.0f", time[1] * 1000000 + time[2] - 2000000)
end
redis.call("SET", KEYS[1], generation, "PX", string.format("%.0f", 2 * ttl))
return generation
