-- destroy.lua puts a tombstone in place of the session in KEYS[1], if there is one, for
-- what is left of its life, and for a while at least. It returns for how long, in ms.
-- Calling it again is harmless; it writes each time, so that a WAIT behind it has
-- something to wait for.
--
-- KEYS[1] session
-- ARGV[1] TTL of the tombstone at least, ms
local ttl = math.max(redis.call("PTTL", KEYS[1]), tonumber(ARGV[1]))
redis.call("UNLINK", KEYS[1]) -- a full server lets a script go on that has written
redis.call("SET", KEYS[1], "\193\020", "PX", string.format("%.0f", ttl))
return ttl
