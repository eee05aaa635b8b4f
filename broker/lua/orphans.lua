-- orphans.lua makes tasks ready again that were delivered and belong to nobody,
-- because their consumer was deleted by hand: the group never delivers them again.
--
-- It returns {moved, next}: how many tasks, and the entry ID to go on behind, or ""
-- at the end.
--
-- KEYS[1] a stream  KEYS[2] T:s:r  KEYS[3] T:st
-- ARGV[1] the entry ID to begin behind, or -    ARGV[2] entries at most
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
local last
for _, g in ipairs(groups.err and {} or groups) do
  local info = {}
  for i = 1, #g, 2 do
    info[g[i]] = g[i + 1]
  end
  if info['name'] == 'w' then
    last = info['last-delivered-id']
  end
end
if not last then
  return {0, ''}
end

-- timed writes into an envelope when its task was published, where the ID of its
-- entry has told that until now.
local function timed(envelope, id)
  if string.byte(envelope, 1) ~= 193 or string.sub(envelope, 9, 14) ~= '\0\0\0\0\0\0' then
    return envelope
  end
  local stamp, rest = '', tonumber(string.match(id, '^%d+'))
  for _ = 1, 6 do
    stamp = string.char(rest % 256) .. stamp
    rest = math.floor(rest / 256)
  end
  return string.sub(envelope, 1, 8) .. stamp .. string.sub(envelope, 15)
end

local from = ARGV[1] == '-' and '-' or '(' .. ARGV[1]
local entries = redis.call('XRANGE', KEYS[1], from, last, 'COUNT', ARGV[2])
local moved = 0
for _, entry in ipairs(entries) do
  if #redis.call('XPENDING', KEYS[1], 'w', entry[1], entry[1], 1) == 0 then
    redis.pcall('HDEL', KEYS[3], '') -- a write, so that the next may exceed maxmemory
    local fields = entry[2]
    fields[2] = timed(fields[2], entry[1])
    redis.call('XADD', KEYS[2], '*', unpack(fields))
    redis.call('XDEL', KEYS[1], entry[1])
    redis.pcall('HINCRBY', KEYS[3], 'reaped', 1)
    moved = moved + 1
  end
end
return {moved, #entries == tonumber(ARGV[2]) and entries[#entries][1] or ''}
