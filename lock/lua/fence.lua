-- fence.lua is the rest of obtain.lua.
local n = #KEYS / 3
local mine = base({unpack(KEYS, 1, n)}, ARGV)
local now = clock()
if not mine then
  local refused = 0
  if ARGV[4] then
    join(KEYS[n + 1], ARGV[4])
    refused = wake(KEYS[1], KEYS[n + 1], KEYS[2 * n + 1]) == -1 and 1 or 0
  end
  local left = -2
  for i = 1, n do
    local pttl = redis.call('PTTL', KEYS[i])
    if left ~= -1 and (pttl == -1 or pttl > left) then
      left = pttl
    end
  end
  return {-1, left, refused, now}
end
if ARGV[5] == 'drop' then
  redis.call('LREM', KEYS[n + 1], 0, ARGV[4])
end
if n == 1 then
  return draw(KEYS[3], now)
end
local token = 0 -- one for all: the greatest that one of the counters gives
for i = 2 * n + 1, 3 * n do
  redis.call('GET', KEYS[i]) -- fails on another type before anything was written
end
for i = 2 * n + 1, 3 * n do
  token = math.max(token, (draw(KEYS[i], now)))
end
for i = 2 * n + 1, 3 * n do
  redis.call('SET', KEYS[i], string.format('%.0f', token), 'PX', fenceLife)
end
return token
