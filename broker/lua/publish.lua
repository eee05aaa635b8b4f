-- publish.lua adds a lane's batch of tasks, once: a sequence number that the lane
-- has used before adds nothing, and is answered as it was then.
--
-- It returns {sequence, verdicts, before}: the lane's last sequence number, now
-- that of this batch unless a later one was there; a character for each task of
-- that batch, without trailing zeros; and the last number before this call, or 0.
-- Verdicts: 0 added; 1 a task with the ID is there already; w a key that it needs
-- holds another type.
--
-- KEYS[1] T:pd  KEYS[2] T:pdz  KEYS[3] T:st  KEYS[4] T:z  KEYS[5] T:zh
-- KEYS[6..8] T:s:0, T:s:1, T:s:2    KEYS[9..] T:id:<id> of each task with a mark
-- ARGV[1] lane    ARGV[2] sequence number
-- then for each task either: 0, 1 or 2 (the priority), envelope
-- or: x, priority, ID, time ("" now, "+ms" after now, "ms" since 1970), TTL of
-- the mark in ms (0 without), envelope
local lane, seq = ARGV[1], tonumber(ARGV[2])
local stored = redis.call('HGET', KEYS[1], lane)
local before = '0'
if stored then
  local last, verdicts = string.match(stored, '^1:(%d+):(.*)$')
  if not last then
    return redis.error_reply('ERR the record of lane ' .. lane .. ' is of another version')
  end
  before = last
  if seq <= tonumber(last) then
    -- Written again, so that a WAIT behind this script covers it.
    redis.pcall('HSET', KEYS[1], lane, stored)
    return {last, verdicts, before}
  end
end

local fits = {}
local function holds(key, kind)
  if fits[key] == nil then
    local t = redis.call('TYPE', key)
    t = type(t) == 'table' and t.ok or t
    fits[key] = t == 'none' or t == kind
  end
  return fits[key]
end
if not holds(KEYS[2], 'zset') then
  return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' is not a sorted set')
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local up = tonumber(time[1]) * 1000 + math.ceil(tonumber(time[2]) / 1000) -- else a delay might be short
local stamp, n = '', now
for _ = 1, 6 do
  stamp = string.char(n % 256) .. stamp
  n = math.floor(n / 256)
end

local verdicts, added, mark = {}, 0, 8
local at = 3
while at <= #ARGV do
  local priority, id, due, ttl, envelope = ARGV[at], nil, nil, 0, nil
  if priority == 'x' then
    priority, id, due, ttl, envelope = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4]), ARGV[at + 5]
    at = at + 6
    if due == '' then
      due = now
    elseif string.sub(due, 1, 1) == '+' then
      due = up + tonumber(string.sub(due, 2))
    else
      due = tonumber(due)
    end
  else
    envelope, due = ARGV[at + 1], now
    at = at + 2
  end
  local later = due > now
  local stream = KEYS[6 + tonumber(priority)]
  local verdict = '0'
  if later and not (holds(KEYS[4], 'zset') and holds(KEYS[5], 'hash')) or not later and not holds(stream, 'stream') then
    verdict = 'w'
    if ttl > 0 then
      mark = mark + 1
    end
  elseif ttl > 0 then
    mark = mark + 1
    if holds(KEYS[5], 'hash') and redis.call('HEXISTS', KEYS[5], id) == 1 then
      verdict = '1'
    elseif not redis.call('SET', KEYS[mark], '1', 'NX', 'PX', string.format('%.0f', ttl + math.max(due - now, 0))) then
      verdict = '1'
    end
  end
  if verdict == '0' then
    envelope = string.sub(envelope, 1, 8) .. stamp .. string.sub(envelope, 15)
    if later then
      redis.call('HSET', KEYS[5], id, envelope)
      redis.call('ZADD', KEYS[4], string.format('%.0f', due), id)
    else
      redis.call('XADD', stream, '*', 'e', envelope)
    end
    added = added + 1
  end
  verdicts[#verdicts + 1] = verdict
end

local all = string.gsub(table.concat(verdicts), '0+$', '')
redis.call('HSET', KEYS[1], lane, '1:' .. ARGV[2] .. ':' .. all)
redis.call('ZADD', KEYS[2], string.format('%.0f', now), lane)
if added > 0 then
  redis.pcall('HINCRBY', KEYS[3], 'published', added)
end
return {ARGV[2], all, before}
