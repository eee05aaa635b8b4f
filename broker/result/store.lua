-- store.lua keeps a record unless a later one is there, and wakes who waits.
-- A final record stays; so does one whose fence and attempt are greater.
--
-- It returns 1 if the record is stored, also by an earlier call; 0 if another
-- one stays; 2 if it is stored and the server refused the wake-up.
--
-- KEYS[1] record, and the name of its channel
-- ARGV[1] stored form of the record    ARGV[2] TTL, milliseconds
-- ARGV[3] PUBLISH, or on Cluster SPUBLISH
local record = ARGV[1]
local old = redis.call('GETRANGE', KEYS[1], 0, 15)
if #old == 16 and string.byte(old, 1) == 0xC1 and string.byte(old, 2) % 16 == 8 then
  if string.byte(old, 3) >= 16 then
    if redis.call('GET', KEYS[1]) == record then
      return 1
    end
    return 0
  end
  for i = 5, 16 do
    local a, b = string.byte(record, i), string.byte(old, i)
    if a < b then
      return 0
    elseif a > b then
      break
    end
  end
end
redis.call('SET', KEYS[1], record, 'PX', ARGV[2])
local reply = redis.pcall(ARGV[3], KEYS[1], string.sub(record, 3, 3))
if type(reply) == 'table' then
  return 2
end
return 1
