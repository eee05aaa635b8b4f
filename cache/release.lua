-- release.lua gives a lease back without a value. It returns 1 if KEYS[1] still
-- held the lease, else 0 and changes nothing.
--
-- KEYS[1] key
-- ARGV[1] lease: C1 13 and the caller's token
if redis.call("GET", KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call("UNLINK", KEYS[1])
return 1
