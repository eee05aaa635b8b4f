-- fence.lua is the rest of obtain.lua.
local n = #KEYS / 3
local mine = base({unpack(KEYS, 1, n)}, ARGV)
if not mine then
  local refused = 0
  if ARGV[4] then
    join(KEYS[n + 1], ARGV[4])
    refused = wake(KEYS[1], KEYS[n + 1])
  end
  local left = -2
  for i = 1, n do
    local pttl = redis.call('PTTL', KEYS[i])
    if left ~= -1 and (pttl == -1 or pttl > left) then
      left = pttl
    end
  end
  return {-1, left, refused}
end
if ARGV[5] == 'drop' then
  redis.call('LREM', KEYS[n + 1], 0, ARGV[4])
end
local now = clock()
local token = now
for i = 2 * n + 1, 3 * n do
  local last = tonumber(redis.call('GET', KEYS[i]) or '0')
  if last and last >= 0 and last < 9007199254740991 then -- else not written here; beyond 2^53 - 1, last + 1 would be last
    token = math.max(token, last + 1)
  end
end
for i = 2 * n + 1, 3 * n do
  redis.call('SET', KEYS[i], string.format('%.0f', token), 'PX', fenceLife)
end
return ARGV[5] == 'called' and {token, now} or token
