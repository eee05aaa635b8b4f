-- maintain.lua elects who does the maintenance of a partition, or keeps the one
-- who does, and lets that one move the tasks that are due.
--
-- It returns {elected, time, moved, next, error}: 1 or 0; the server's time in ms;
-- how many tasks were moved; when the next one is due in ms, or 0 if none (for
-- who is not elected: when the elected one's term ends); and the error of a
-- task that could not be moved and has stayed, or "".
--
-- A task of a key without a free slot is parked instead. Which keys a task has is
-- in its envelope: they are in the slot of the others and not declared.
--
-- KEYS[1] T:mt  KEYS[2] T:z  KEYS[3] T:zh  KEYS[4] T:st  KEYS[5..7] T:s:0, T:s:1, T:s:2
-- ARGV[1] who asks    ARGV[2] term in ms    ARGV[3] tasks at most
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function ms(n)
  return string.format('%.0f', n)
end

local holder = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if holder and holder ~= ARGV[1] and left ~= -1 then -- without TTL it is nobody's
  return {0, ms(now), 0, ms(now + math.max(left, 0)), ''}
end
-- A write that changes nothing: after it Redis lets the others exceed maxmemory.
redis.pcall('HDEL', KEYS[3], '')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])

local T = string.sub(KEYS[4], 1, -3)
local moved, err, bad = 0, '', {}
local due = redis.pcall('ZRANGEBYSCORE', KEYS[2], '-inf', ms(now), 'LIMIT', 0, ARGV[3])
if failed(due) then
  return {1, ms(now), 0, '0', KEYS[2] .. ': ' .. due.err}
end
for _, id in ipairs(due) do
  local envelope = redis.pcall('HGET', KEYS[3], id)
  if failed(envelope) then
    return {1, ms(now), 0, '0', KEYS[3] .. ': ' .. envelope.err}
  elseif envelope then
    local p = parse(envelope)
    local stream = KEYS[5 + p.priority]
    local why = bad[stream .. (p.key or '')]
    if not why then
      why = enter(T, p, envelope, stream, ms(now))
      if why then
        bad[stream .. (p.key or '')] = why
        err = stream .. ': ' .. why
      else
        redis.call('ZREM', KEYS[2], id)
        redis.call('HDEL', KEYS[3], id)
        relock(T, p.unique or '', p.id)
        moved = moved + 1
      end
    end
  else
    redis.call('ZREM', KEYS[2], id)
    err = KEYS[3] .. ' lacks the task ' .. id
  end
end
if moved > 0 then
  redis.pcall('HINCRBY', KEYS[4], 'due', moved)
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {1, ms(now), moved, first[2] and ms(tonumber(first[2])) or '0', err}
