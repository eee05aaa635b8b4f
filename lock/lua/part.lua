-- part.lua gives a lease back to one server of a quorum and tells who waits for
-- it. In front of it stands base, which is redislock's script to release. It
-- returns 1, or 0 if the lease was gone.
--
-- KEYS: leases
-- ARGV[1] what they hold
-- ARGV[2] the message, the same on all servers
if not base(KEYS, {ARGV[1]}) then
  return 0
end
for i = 1, #KEYS do
  redis.pcall('PUBLISH', KEYS[i] .. ':free', ARGV[2]) -- if the ACL forbids it, who waits polls
end
return 1
