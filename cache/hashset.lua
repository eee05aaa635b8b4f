-- hashset.lua sets a field of the hash in KEYS[1] and the field's TTL, on servers that have
-- no HSETEX. It returns 1, or 0 if the server has no TTL of fields: then it changes
-- nothing. Calling it again is harmless.
--
-- KEYS[1] hash
-- ARGV[1] field
-- ARGV[2] value
-- ARGV[3] TTL of the field, ms
local probe = redis.pcall("HPEXPIRE", KEYS[1], ARGV[3], "FIELDS", 1, ARGV[1])
if type(probe) == "table" and probe.err then
  if string.find(string.lower(probe.err), "unknown", 1, true) then
    return 0
  end
  return probe
end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[2])
redis.call("HPEXPIRE", KEYS[1], ARGV[3], "FIELDS", 1, ARGV[1])
return 1
