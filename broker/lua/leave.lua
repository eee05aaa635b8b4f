-- leave.lua removes a consumer: its heartbeat, its term of maintenance, and its
-- entry in each group where it has nothing pending. (Deleting a consumer with
-- pending tasks would lose them.)
--
-- It returns how many tasks are pending with it, at most one for each stream; or
-- -1, and nothing was done, if it is alive and shall not be.
--
-- KEYS[1] T:hb:<consumer>  KEYS[2] T:mt  KEYS[3..6] T:s:r, T:s:0, T:s:1, T:s:2
-- ARGV[1] consumer    ARGV[2] who holds the term of maintenance, ""
-- ARGV[3] 1: only if it has no heartbeat
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
  return -1
end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '' and redis.call('GET', KEYS[2]) == ARGV[2] then
  redis.call('DEL', KEYS[2])
end
local left = 0
for i = 3, 6 do
  local pending = redis.pcall('XPENDING', KEYS[i], 'w', '-', '+', 1, ARGV[1])
  if not pending.err then
    if #pending == 0 then
      redis.pcall('XGROUP', 'DELCONSUMER', KEYS[i], 'w', ARGV[1])
    else
      left = left + 1
    end
  end
end
return left
