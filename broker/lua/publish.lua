-- publish.lua adds a lane's batch of tasks, once: a sequence number that the lane
-- has used before adds nothing, and is answered as it was then.
--
-- It returns "before:sequence:verdicts": the lane's last sequence number before
-- this call, or 0; the last one now, that of this batch unless a later one was
-- there; and a character for each task of that batch, without trailing zeros. For
-- each u among them a line follows with the ID of the task that holds the key.
-- Verdicts: 0 added, ready, delayed or parked; 1 a task with the ID is there
-- already; u a task with the unique key is; f the queue is full; w a key that it
-- needs holds another type.
--
-- lane.lua is put before it. See plain.lua for what most batches need.
--
-- KEYS[1] T:pd  KEYS[2] T:st  KEYS[3] T:pdz  KEYS[4..6] T:s:0, T:s:1, T:s:2
-- and if a task has conditions: KEYS[7] T:z  KEYS[8] T:zh  KEYS[9] T:s:r  KEYS[10] T:kz
-- KEYS[11..] of each task, as far as it has conditions of that kind: T:id:<id>,
-- T:u:<key>, T:k:<key> and T:kq:<key>
-- ARGV[1] lane    ARGV[2] sequence number    ARGV[3] 1: note that the lane is used
-- then for each task: its envelope, into which the time is written; before it
-- conditions if it has any: "due;mark;unique;limit;bound;key":
-- due ("" now, "+ms" after now, "ms" since 1970); TTL of its ID's mark in ms, and of
-- its unique key (a + before that: from when it is due), each 0 without; how many
-- tasks of its concurrency key may run, 0 without; how many the queue may hold, 0
-- any number; the concurrency key
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local high, low = math.floor(now / 16777216), now % 16777216
local stamp = string.char(math.floor(high / 65536) % 256, math.floor(high / 256) % 256, high % 256,
  math.floor(low / 65536), math.floor(low / 256) % 256, low % 256)

local wrote = false -- before that, an error says what is wrong with the server
if not stored or ARGV[3] == '1' then
  local reply = redis.pcall('ZADD', KEYS[3], string.format('%.0f', now), lane)
  if type(reply) == 'table' then
    return redis.error_reply(string.find(reply.err, 'WRONGTYPE', 1, true) and 'WRONGTYPE ' .. KEYS[3] .. ' is not a sorted set' or reply.err)
  end
  wrote = true
end

local function failed(reply)
  return type(reply) == 'table' and reply.err
end

local fits = {}
local function holds(key, kind)
  if fits[key] == nil then
    local t = redis.call('TYPE', key)
    t = type(t) == 'table' and t.ok or t
    if t == 'none' then
      return true
    end
    fits[key] = t == kind
  end
  return fits[key]
end

local refusal -- the server's, of the first write
local function add(stream, envelope)
  local reply = redis.pcall('XADD', stream, '*', 'e', envelope)
  if not failed(reply) then
    wrote = true
    return '0'
  elseif wrote or string.find(reply.err, 'WRONGTYPE', 1, true) then
    return 'w'
  end
  refusal = reply
end

local function streamOf(envelope)
  return KEYS[4 + math.min(string.byte(envelope, 4), 2)]
end

local size -- how many tasks there are, as far as they can be counted
local function count()
  local n = 0
  for _, i in ipairs({4, 5, 6, 9}) do
    local reply = redis.pcall('XLEN', KEYS[i])
    n = n + (failed(reply) and 0 or reply)
  end
  local reply = redis.pcall('ZCARD', KEYS[7])
  return n + (failed(reply) and 0 or reply)
end

-- Parks a task behind its key, and starts those for which there is room.
local function park(envelope, key, set, list, limit)
  redis.call('RPUSH', list, envelope)
  redis.call('ZADD', KEYS[10], string.format('%.0f', now), key)
  wrote = true
  while redis.call('SCARD', set) < limit do
    local first = redis.call('LINDEX', list, 0)
    if not first then
      redis.call('ZREM', KEYS[10], key)
      break
    end
    if add(streamOf(first), first) ~= '0' then
      break
    end
    redis.call('LPOP', list)
    redis.call('SADD', set, string.sub(first, 16, 15 + string.byte(first, 15)))
  end
end

local up = tonumber(time[1]) * 1000 + math.ceil(tonumber(time[2]) / 1000) -- else a delay might be short
local holders = {}
local nextKey = 10
local function take(present)
  if present then
    nextKey = nextKey + 1
    return KEYS[nextKey]
  end
end

local function publish(conditions, envelope)
  local due, ttl, from, unique, limit, bound, key = string.match(conditions, '^([^;]*);(%d+);(%+?)(%d+);(%d+);(%d+);(.*)$')
  ttl, unique, limit, bound = tonumber(ttl), tonumber(unique), tonumber(limit), tonumber(bound)
  local mark, holder = take(ttl > 0), take(unique > 0)
  local set, list = take(limit > 0), take(limit > 0)
  local id = string.sub(envelope, 16, 15 + string.byte(envelope, 15))
  local stream = streamOf(envelope)
  if due == '' then
    due = now
  elseif string.sub(due, 1, 1) == '+' then
    due = up + tonumber(string.sub(due, 2))
  else
    due = tonumber(due)
  end
  local later, delay = due > now, math.max(due - now, 0)

  if later and not (holds(KEYS[7], 'zset') and holds(KEYS[8], 'hash')) or not later and not holds(stream, 'stream')
    or holder and not holds(holder, 'string') or set and not (holds(set, 'set') and holds(list, 'list') and holds(KEYS[10], 'zset')) then
    return 'w'
  end
  if mark and (redis.call('EXISTS', mark) == 1 or holds(KEYS[8], 'hash') and redis.call('HEXISTS', KEYS[8], id) == 1) then
    return '1'
  end
  local who = holder and redis.call('GET', holder)
  if who == id then
    return '1'
  elseif who then
    holders[#holders + 1] = string.gsub(who, '%c', ' ')
    return 'u'
  end
  if bound > 0 then
    size = size or count()
    if size + (list and redis.call('LLEN', list) or 0) >= bound then
      return 'f'
    end
  end

  if mark then
    redis.call('SET', mark, '1', 'PX', string.format('%.0f', ttl + delay))
    wrote = true
  end
  if holder then
    redis.call('SET', holder, id, 'PX', string.format('%.0f', unique + (from == '+' and delay or 0)))
    wrote = true
  end
  if later then
    redis.call('HSET', KEYS[8], id, envelope)
    redis.call('ZADD', KEYS[7], string.format('%.0f', due), id)
    wrote = true
  elseif set and (redis.call('SCARD', set) >= limit or redis.call('LLEN', list) > 0) then
    park(envelope, key, set, list, limit)
    return '0' -- LLEN counts it
  else
    local verdict = add(stream, envelope)
    if verdict ~= '0' then
      if mark then
        redis.call('DEL', mark)
      end
      if holder then
        redis.call('DEL', holder)
      end
      return verdict
    end
    if set then
      redis.call('SADD', set, id)
    end
  end
  size = size and size + 1
  return '0'
end

local verdicts, added = {}, 0
local at, n = 4, #ARGV
while at <= n do
  local conditions, envelope, verdict = nil, ARGV[at], nil
  if string.byte(envelope, 1) ~= 193 then
    conditions, envelope = envelope, ARGV[at + 1]
    at = at + 1
  end
  at = at + 1
  envelope = string.sub(envelope, 1, 8) .. stamp .. string.sub(envelope, 15)
  if conditions then
    verdict = publish(conditions, envelope)
  else
    verdict = add(streamOf(envelope), envelope)
  end
  if not verdict then
    return refusal
  elseif verdict == '0' then
    added = added + 1
  end
  verdicts[#verdicts + 1] = verdict
end

local all = string.gsub(table.concat(verdicts), '0+$', '')
if #holders > 0 then
  all = all .. '\n' .. table.concat(holders, '\n')
end
return finish(all, added)
