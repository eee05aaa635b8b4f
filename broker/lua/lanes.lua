-- lanes.lua forgets the publish lanes that were not used for a while.
--
-- It returns how many it forgot.
--
-- KEYS[1] T:pd  KEYS[2] T:pdz
-- ARGV[1] age in ms    ARGV[2] lanes at most
local time = redis.call('TIME')
local before = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - tonumber(ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', before), 'LIMIT', 0, ARGV[2])
for _, lane in ipairs(old) do
  redis.call('HDEL', KEYS[1], lane)
  redis.call('ZREM', KEYS[2], lane)
end
return #old
