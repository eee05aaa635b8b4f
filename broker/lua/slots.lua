-- slots.lua takes away slots of a key from tasks that do not exist any more, and
-- starts the parked tasks for which there is room. keys.lua is put before it.
--
-- It returns how many slots it took away; or -1, and nothing was done, if a task of
-- the key was started or parked since the caller looked.
--
-- KEYS[1] T:kz  KEYS[2] T:k:<key>  KEYS[3] T:kq:<key>  KEYS[4..6] T:s:0, T:s:1, T:s:2
-- ARGV[1] key    ARGV[2] its score in T:kz when the caller looked    ARGV[3..] IDs
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return -1
end
local gone = 0
for i = 3, #ARGV do
  gone = gone + redis.call('SREM', KEYS[2], ARGV[i])
end
vacate(string.sub(KEYS[1], 1, -3), ARGV[1], '', function(priority) return KEYS[4 + priority] end, milliseconds())
return gone
