-- drop.lua deletes dead letters.
--
-- It returns for each letter 1 if it was deleted, 0 if it is gone or has died anew
-- meanwhile.
--
-- KEYS[1] T:dl  KEYS[2] T:dlh  KEYS[3] T:st
-- ARGV for each letter: its name in T:dl, its score there
local out, deleted = {}, 0
for at = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[at])
  local same = score and tonumber(score) == tonumber(ARGV[at + 1])
  if same then
    redis.call('HDEL', KEYS[2], ARGV[at])
    redis.call('ZREM', KEYS[1], ARGV[at])
    deleted = deleted + 1
  end
  out[#out + 1] = same and 1 or 0
end
if deleted > 0 then
  redis.pcall('HINCRBY', KEYS[3], 'deleted', deleted)
end
return out
