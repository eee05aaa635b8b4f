-- discard.lua deletes the lease on KEYS[1] if it is mine: also one that was only
-- set aside for me. It returns 1 if it was deleted, else 0.
--
-- KEYS[1] lease
-- ARGV[1] my token; all tokens are of one length, so a prefix tells whose it is
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
