-- generation.lua returns the generation in KEYS[1], as decimal digits, and sees to
-- it that it lives for a while. If there is none, it makes one, which is a little in
-- the past: what was loaded before does not look outdated. One of the future, as the
-- server's clock has left that was set back, is replaced by the time, as by raise.lua:
-- until then all loads would look outdated. Calling it again is harmless.
--
-- KEYS[1] generation of a view or a tag
-- ARGV[1] the one to be made; "": two seconds before the server's time
-- ARGV[2] TTL that it has afterwards at least, ms
local ttl = tonumber(ARGV[2])
local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
local generation = redis.call("GET", KEYS[1])
if generation and (tonumber(generation) or 0) <= now + 2000000 then
  if redis.call("PTTL", KEYS[1]) < ttl then -- doubled, so that this is done seldom
    redis.call("PEXPIRE", KEYS[1], string.format("%.0f", 2 * ttl))
  end
  return generation
end
if generation then
  generation = string.format("%.0f", now)
elseif ARGV[1] ~= "" then
  generation = ARGV[1]
else
  generation = string.format("%.0f", now - 2000000)
end
redis.call("SET", KEYS[1], generation, "PX", string.format("%.0f", 2 * ttl))
return generation
