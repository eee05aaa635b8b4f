-- count.lua counts the tasks of a partition.
--
-- It returns {ready, in flight, delayed, dead, parked, keys with parked tasks,
-- paused, time, oldest ready, first due, ready in T:s:r, T:s:0, T:s:1, T:s:2}.
-- Parked are the tasks of the first 1,000 of those keys. Paused is 1 or 0. Times are
-- ms since 1970: the server's, when the oldest ready task came into its stream, and
-- when the first delayed one is due, each 0 if there is none.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:z  KEYS[6] T:dl  KEYS[7] T:kz
-- KEYS[8] T:pause    ARGV[1] T:
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))

local function delivered(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, g in ipairs(groups.err and {} or groups) do
    local info = {}
    for i = 1, #g, 2 do
      info[g[i]] = g[i + 1]
    end
    if info['name'] == 'w' then
      return '(' .. info['last-delivered-id']
    end
  end
  return '-'
end

local ready, pending, oldest, each = 0, 0, nil, {}
for i = 1, 4 do
  local n, own = redis.call('XLEN', KEYS[i]), 0
  local reply = redis.pcall('XPENDING', KEYS[i], 'w')
  if not reply.err then
    own = reply[1]
  end
  each[i] = n - own
  ready, pending = ready + n - own, pending + own
  if n > own then
    local first = redis.call('XRANGE', KEYS[i], delivered(KEYS[i]), '+', 'COUNT', 1)
    local ms = first[1] and tonumber(string.match(first[1][1], '^%d+'))
    if ms and (not oldest or ms < oldest) then
      oldest = ms
    end
  end
end

local keys, parked = redis.call('ZRANGE', KEYS[7], 0, 999), 0
for _, key in ipairs(keys) do
  parked = parked + redis.call('LLEN', ARGV[1] .. 'kq:' .. key)
end
local due = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
return {ready, pending, redis.call('ZCARD', KEYS[5]), redis.call('ZCARD', KEYS[6]), parked, redis.call('ZCARD', KEYS[7]),
  redis.call('EXISTS', KEYS[8]), now, string.format('%.0f', oldest or 0), due[2] and string.format('%.0f', tonumber(due[2])) or '0',
  each[1], each[2], each[3], each[4]}
