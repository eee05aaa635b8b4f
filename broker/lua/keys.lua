-- keys.lua is put before the scripts that end tasks or make them ready: what they
-- do with unique keys and with keys of which only so many tasks may be ready or
-- running. T is the prefix of the partition's keys.

local function failed(reply)
  return type(reply) == 'table' and reply.err
end

-- uvarint reads a number from s. It returns nil if there is none.
local function uvarint(s, at)
  local n, scale = 0, 1
  for i = at, at + 9 do
    local b = string.byte(s, i)
    if not b then
      return nil
    end
    n = n + b % 128 * scale
    if b < 128 then
      return n, i + 1
    end
    scale = scale * 128
  end
end

-- parse returns what scripts need of an envelope: id, priority, and where it has
-- them unique, key and limit. An envelope that is none has no id.
local function parse(envelope)
  local p = {priority = string.byte(envelope, 4)}
  if not p.priority or p.priority > 2 then
    p.priority = 1
  end
  local n = string.byte(envelope, 15)
  if not n or n == 0 or string.sub(envelope, 1, 2) ~= '\193\25' then
    return p
  end
  p.id = string.sub(envelope, 16, 15 + n)
  local at = 16 + n
  at = at + 1 + (string.byte(envelope, at) or 0)
  while true do
    local tag, size = string.byte(envelope, at), nil
    if not tag or tag == 0 then
      return p
    end
    size, at = uvarint(envelope, at + 1)
    if not size then
      return p
    end
    if tag == 4 then
      p.unique = string.sub(envelope, at, at + size - 1)
    elseif tag == 5 then
      local limit, from = uvarint(envelope, at)
      if limit then
        p.limit, p.key = limit, string.sub(envelope, from, at + size - 1)
      end
    end
    at = at + size
  end
end

-- unlock releases a unique key if the task has it.
local function unlock(T, unique, id)
  if unique ~= '' and redis.pcall('GET', T .. 'u:' .. unique) == id then
    redis.call('DEL', T .. 'u:' .. unique)
  end
end

-- relock lets the task keep its unique key for a day more.
local function relock(T, unique, id)
  if unique ~= '' and redis.pcall('GET', T .. 'u:' .. unique) == id then
    redis.call('PEXPIRE', T .. 'u:' .. unique, 86400000)
  end
end

-- enter makes a task ready, or parks it if its key has no slot. It returns an
-- error, and then has changed nothing.
local function enter(T, p, envelope, stream, now)
  if not p.key then
    return failed(redis.pcall('XADD', stream, '*', 'e', envelope))
  end
  local k, kq, kz = T .. 'k:' .. p.key, T .. 'kq:' .. p.key, T .. 'kz'
  local parked = redis.pcall('LLEN', kq)
  local err = failed(redis.pcall('SREM', k, p.id)) or failed(parked) or failed(redis.pcall('ZSCORE', kz, p.key))
  if err then
    return err
  end
  if parked == 0 and redis.call('SCARD', k) < p.limit then
    err = failed(redis.pcall('XADD', stream, '*', 'e', envelope))
    if not err then
      redis.call('SADD', k, p.id)
    end
    return err
  end
  redis.call('RPUSH', kq, envelope)
  redis.call('ZADD', kz, now, p.key)
end

-- vacate gives up a task's slot of a key and starts the parked tasks for which
-- there is room. stream returns the key of a priority's stream.
local function vacate(T, key, id, stream, now)
  if key == '' then
    return
  end
  local k, kq, kz = T .. 'k:' .. key, T .. 'kq:' .. key, T .. 'kz'
  if failed(redis.pcall('SREM', k, id)) then
    return
  end
  while true do
    local envelope = redis.pcall('LINDEX', kq, 0)
    if not envelope or failed(envelope) then
      redis.pcall('ZREM', kz, key)
      return
    end
    local p = parse(envelope)
    if p.key and redis.call('SCARD', k) >= p.limit or failed(redis.pcall('XADD', stream(p.priority), '*', 'e', envelope)) then
      return
    end
    redis.call('LPOP', kq)
    if p.id then
      redis.call('SADD', k, p.id)
    end
    redis.pcall('ZADD', kz, now, key)
  end
end

local function milliseconds()
  local time = redis.call('TIME')
  return string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
end
