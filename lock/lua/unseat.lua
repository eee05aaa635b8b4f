-- unseat.lua takes a lease from who holds it under a token. The key stays until
-- its TTL ends it. It returns 1, or 0 if another holds it.
--
-- KEYS[1] lease
-- ARGV[1] the token
-- ARGV[2] what the lease is to hold
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
