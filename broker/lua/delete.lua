-- delete.lua deletes the keys of a partition that holds no task and that nobody has
-- used for a while. Marks of IDs and unique keys stay until their TTL is over.
--
-- It returns "" if it did; else what is in the way: "tasks", "workers" (one of
-- which would do the maintenance), or "publishers".
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:z  KEYS[6] T:zh  KEYS[7] T:dl
-- KEYS[8] T:dlh  KEYS[9] T:kz  KEYS[10] T:pd  KEYS[11] T:pdz  KEYS[12] T:st
-- KEYS[13] T:rv  KEYS[14] T:pause  KEYS[15] T:mt  KEYS[16] T:owed
-- ARGV[1] ms for which no lane must have been used
for i = 1, 4 do
  if redis.call('XLEN', KEYS[i]) > 0 then
    return 'tasks'
  end
end
if redis.call('ZCARD', KEYS[5]) + redis.call('ZCARD', KEYS[7]) + redis.call('ZCARD', KEYS[9]) > 0 then
  return 'tasks'
end
if redis.call('EXISTS', KEYS[15]) == 1 then
  return 'workers'
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = redis.call('ZREVRANGE', KEYS[11], 0, 0, 'WITHSCORES')
if last[2] and tonumber(last[2]) > now - tonumber(ARGV[1]) then
  return 'publishers'
end
redis.call('DEL', unpack(KEYS))
return ''
