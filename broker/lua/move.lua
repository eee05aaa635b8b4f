-- move.lua takes tasks from a consumer and puts them elsewhere: a retry, a
-- release, a dead letter. It moves only what is still pending with that consumer.
-- Scripts are not rolled back, so the task is added before it leaves its stream,
-- and what could fail is tried before that by removing it where it will go. A task
-- that is delayed or ends gives up its slot of a key; one that ends its unique key.
--
-- It returns for each task 1 if it was moved, 0 if it was not the consumer's, or
-- an error, and the task has stayed.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:z  KEYS[6] T:zh  KEYS[7] T:dl
-- KEYS[8] T:dlh  KEYS[9] T:st  KEYS[10] T:hb:<consumer>
-- KEYS[11..] T:kz, T:u:<key>, T:k:<key>, T:kq:<key> of tasks that have such, T:rv
-- ARGV[1] consumer    ARGV[2] 1: only if it has no heartbeat
-- then for each task: stream (1..4), entry ID, where to (z delayed, d dead, r
-- ready, x nowhere), counter, ID of the task, ms from now (z), value, unique key,
-- key of which it has a slot
local consumer = ARGV[1]
local alive = ARGV[2] == '1' and redis.call('EXISTS', KEYS[10]) == 1
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.ceil(tonumber(time[2]) / 1000) -- upwards, else a delay might be short
local T = string.sub(KEYS[9], 1, -3)

local function stream(priority)
  return KEYS[2 + priority]
end

local function place(to, id, entry, delay, value)
  if to == 'z' or to == 'd' then
    local set = to == 'z' and KEYS[5] or KEYS[7]
    local hash = to == 'z' and KEYS[6] or KEYS[8]
    local taken = redis.pcall('HEXISTS', hash, id)
    if taken == 1 then -- a given ID, used again after its mark was gone: both stay
      id = id .. '#' .. entry
    end
    local score = string.format('%.0f', now + tonumber(delay))
    return failed(taken) or failed(redis.pcall('ZREM', set, id)) or failed(redis.pcall('HDEL', hash, id))
      or failed(redis.pcall('HSET', hash, id, value)) or failed(redis.pcall('ZADD', set, score, id))
  elseif to == 'r' then
    redis.pcall('HDEL', KEYS[6], '') -- a write, so that the next may exceed maxmemory
    return failed(redis.pcall('XADD', KEYS[1], '*', 'e', value))
  end
end

local function move(key, entry, to, counter, id, delay, value, unique, slot)
  local own = redis.pcall('XPENDING', key, 'w', entry, entry, 1, consumer)
  local err = failed(own)
  if err then
    return string.find(err, 'NOGROUP', 1, true) and 0 or err
  elseif #own == 0 or alive then
    return 0
  end
  err = place(to, id, entry, delay, value)
  if err then
    return err
  end
  redis.call('XACK', key, 'w', entry)
  redis.call('XDEL', key, entry)
  redis.pcall('HINCRBY', KEYS[9], counter, 1)
  if to == 'd' or to == 'x' then
    unlock(T, unique, id)
    redis.pcall('ZREM', T .. 'rv', id)
  else
    relock(T, unique, id)
  end
  if to ~= 'r' then
    vacate(T, slot, id, stream, string.format('%.0f', now))
  end
  return 1
end

local out = {}
for at = 3, #ARGV, 9 do
  out[#out + 1] = move(KEYS[tonumber(ARGV[at])], unpack(ARGV, at + 1, at + 8))
end
return out
