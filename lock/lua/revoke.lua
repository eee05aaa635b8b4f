-- revoke.lua takes a lease from its holder, if the holder has the given fencing
-- token: the key stays until its TTL ends it, so that nobody else gets the lock
-- before the holder, whose renewals are refused now, has ended too. It returns 1,
-- else 0.
--
-- KEYS[1] lease        KEYS[2] counter
-- ARGV[1] the fencing token
-- ARGV[2] what the lease is to hold
-- ARGV[3] length of a token
local value = redis.call('GET', KEYS[1])
if not value or redis.call('GET', KEYS[2]) ~= ARGV[1]
  or string.find(value, '"revoked":true', tonumber(ARGV[3]) + 1, true) then -- it was revoked already
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
