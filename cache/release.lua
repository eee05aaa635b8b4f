-- release.lua gives a lease back without a value: the key is empty then. For a
-- refresh the old value stays, and nobody refreshes it for a while; or it goes, if
-- the source has nothing in its place. It returns 1 if KEYS[1] still held the lease
-- or the value with that refresh token, else 0 and changes nothing.
--
-- KEYS[1] key
-- ARGV[1] lease: C1 13 and the caller's token
-- ARGV[2] how long nobody refreshes, ms; -1: the old value goes
local own = owns(redis.call("GETRANGE", KEYS[1], 0, 35), ARGV[1])
if not own then
  return 0
end
if own == "lease" or ARGV[2] == "-1" then
  redis.call("UNLINK", KEYS[1])
else
  local till = 0
  if ARGV[2] ~= "0" then
    till = now() + tonumber(ARGV[2])
  end
  redis.call("SETRANGE", KEYS[1], 12, bytes(till) .. string.rep("\0", 16))
end
return 1
