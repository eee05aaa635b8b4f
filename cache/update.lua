-- update.lua stores a value in KEYS[1] if the key still holds what the caller has read.
-- It returns 1 if so, else 0 and changes nothing.
--
-- KEYS[1] key
-- ARGV[1] value, as it shall be stored
-- ARGV[2] SHA-1 of what was read, in hex
-- ARGV[3] TTL of the value, ms; "": that of what was read
local held = redis.call("GET", KEYS[1])
if not held or redis.sha1hex(held) ~= ARGV[2] then
  return 0
end
if ARGV[3] == "" then
  redis.call("SET", KEYS[1], ARGV[1], "KEEPTTL")
else
  redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[3])
end
return 1
