-- commit.lua stores a session in KEYS[1], unless it has been destroyed. If the same is
-- there already it is only given its new TTL, and not even that while three quarters of
-- the new one are left. Calling it again is harmless. It returns
--   0 if there is a tombstone: nothing changes;
--   1 if the session is stored;
--   2 if its TTL is changed;
--   3 if all is left as it is.
--
-- KEYS[1] session
-- ARGV[1] its data, as they shall be stored
-- ARGV[2] TTL, ms
local held = redis.call("GET", KEYS[1])
if held == "\193\020" then
  return 0
end
if held == ARGV[1] then
  local left, ttl = redis.call("PTTL", KEYS[1]), tonumber(ARGV[2])
  if left <= ttl and 4 * left >= 3 * ttl then
    return 3
  end
  redis.call("PEXPIRE", KEYS[1], ARGV[2])
  return 2
end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return 1
