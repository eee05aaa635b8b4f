-- remove.lua takes tasks that no worker has out of a partition: ready, delayed and
-- parked ones. They release their unique keys and give up their slots, so that
-- parked tasks may start. What is still to be written of a task, its result, is noted
-- in T:owed in the same step.
--
-- It returns for each task 1 if it was removed; 0 if it is not there any more, or a
-- worker has it; or an error, and the task has stayed.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:z  KEYS[6] T:zh  KEYS[7] T:kz
-- KEYS[8] T:st  KEYS[9] T:owed; then the unique and concurrency keys of the tasks
-- ARGV[1] T:    ARGV[2] counter
-- then for each task: s, number of its stream (1..4), entry ID
-- or: z, its name in T:z, ""    or: q, concurrency key, envelope
-- and behind that its ID and the note, or ""
local T = ARGV[1]
local now = milliseconds()

local function stream(priority)
  return KEYS[2 + priority]
end

local function fromStream(key, entry)
  if upTo(entry, delivered(key)) then
    return 0
  end
  local found = redis.pcall('XRANGE', key, entry, entry)
  if failed(found) then
    return found.err
  elseif not found[1] then
    return 0
  end
  redis.call('XDEL', key, entry)
  local fields = found[1][2]
  local p = parse(type(fields) == 'table' and fields[2] or '')
  if p.id then
    unlock(T, p.unique or '', p.id)
    vacate(T, p.key or '', p.id, stream, now)
  end
  return 1
end

local function fromDelayed(name)
  local envelope = redis.pcall('HGET', KEYS[6], name)
  local there = redis.pcall('ZREM', KEYS[5], name)
  if failed(envelope) or failed(there) then
    return failed(envelope) or failed(there)
  end
  if envelope then
    redis.call('HDEL', KEYS[6], name)
    local p = parse(envelope)
    unlock(T, p.unique or '', p.id or name)
  end
  return there
end

local function fromParked(key, envelope)
  local list = T .. 'kq:' .. key
  local there = redis.pcall('LREM', list, 1, envelope)
  if failed(there) then
    return there.err
  end
  if redis.call('EXISTS', list) == 0 then
    redis.pcall('ZREM', KEYS[7], key)
  end
  local p = parse(envelope)
  if there == 1 and p.id then
    unlock(T, p.unique or '', p.id)
  end
  return there
end

local function remove(from, where, what, id, note)
  if note ~= '' then -- before the task goes, which cannot fail behind that
    redis.pcall('HDEL', KEYS[9], '') -- a write, so that the next may exceed maxmemory
    local err = failed(redis.pcall('HSET', KEYS[9], id, note))
    if err then
      return err
    end
  end
  local reply
  if from == 's' then
    reply = fromStream(KEYS[tonumber(where)], what)
  elseif from == 'z' then
    reply = fromDelayed(where)
  else
    reply = fromParked(where, what)
  end
  if note ~= '' and reply ~= 1 then
    redis.call('HDEL', KEYS[9], id)
  end
  return reply
end

local out, removed = {}, 0
for at = 3, #ARGV, 5 do
  local reply = remove(unpack(ARGV, at, at + 4))
  if reply == 1 then
    removed = removed + 1
  end
  out[#out + 1] = reply
end
if removed > 0 then
  redis.pcall('HINCRBY', KEYS[8], ARGV[2], removed)
end
return out
