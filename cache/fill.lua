-- fill.lua stores the value that was loaded under a lease or for a refresh, if
-- KEYS[1] still holds that lease or the value with that refresh token. It returns 1
-- if so, else 0 and changes nothing.
--
-- KEYS[1] key
-- ARGV[1] lease: C1 13 and the caller's token
-- ARGV[2] value, as it shall be stored
-- ARGV[3] TTL of the value, ms
if not owns(redis.call("GETRANGE", KEYS[1], 0, 35), ARGV[1]) then
  return 0
end
redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3])
return 1
