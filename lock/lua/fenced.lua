-- fenced.lua stores a value, unless a greater fencing token than mine has stored
-- one. It returns 1, or else what the fence holds. Tokens are compared as they are
-- written, since Lua's numbers lose digits beyond 2^53.
--
-- KEYS[1] value        KEYS[2] fence: the greatest token that has stored
-- ARGV[1] what to store
-- ARGV[2] my token, in decimal
-- ARGV[3] how long the value lives, milliseconds; 0 for ever
-- ARGV[4] how long the fence lives, milliseconds
local mine, last = ARGV[2], redis.call('GET', KEYS[2])
if last and (string.find(last, '^[1-9]%d*$') == nil or #last > #mine or #last == #mine and last > mine) then
  return last
end
redis.call('SET', KEYS[2], mine, 'PX', ARGV[4])
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
end
return 1
