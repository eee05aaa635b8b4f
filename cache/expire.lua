-- expire.lua makes the value in KEYS[1] stale: the next Fetch refreshes it. What
-- is loaded meanwhile is not stored: a lease goes, and a refresh loses its token.
-- Absences and error markers go too. It returns 1 if a value is there, else 0.
-- Calling it again is harmless.
--
-- KEYS[1] key
-- ARGV[1] the header of a stale value that was plain, if the view is; else ""
-- ARGV[2] TTL that a plain value gets if it has none, ms
local head = redis.call("GETRANGE", KEYS[1], 0, 47)
if head == "" and redis.call("EXISTS", KEYS[1]) == 0 then
  return 0
end
local k = kind(head)
if k == VALUE and #head == 48 then
  -- Time 1 is past by everybody's clock.
  redis.call("SETRANGE", KEYS[1], 4, bytes(1) .. string.rep("\0", 24))
  return 1
end
if k == LEASE or k == ABSENCE or k == FAILURE then
  redis.call("UNLINK", KEYS[1])
  return 0
end
if ARGV[1] == "" or k and k ~= 0x10 then
  return 0
end
local ttl = redis.call("PTTL", KEYS[1])
if ttl < 0 then
  ttl = ARGV[2]
end
redis.call("SET", KEYS[1], ARGV[1] .. redis.call("GET", KEYS[1]), "PX", ttl)
return 1
