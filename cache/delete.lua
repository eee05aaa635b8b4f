-- delete.lua removes what KEYS[1] holds, and puts a tombstone there for the time
-- of the hold. A tombstone that is there stays, for the longer of the two holds.
-- It returns 1. Calling it again is harmless.
--
-- KEYS[1] key
-- ARGV[1] hold, ms; 0: none
local hold = tonumber(ARGV[1])
if redis.pcall("GETRANGE", KEYS[1], 0, 2) == "\193\020" then -- what is no string is an error
  if hold > redis.call("PTTL", KEYS[1]) then
    redis.call("PEXPIRE", KEYS[1], ARGV[1])
  end
  return 1
end
redis.call("UNLINK", KEYS[1])
if hold > 0 then -- also on a full server, which lets a script go on that has written
  redis.call("SET", KEYS[1], "\193\020", "PX", ARGV[1])
end
return 1
