-- ack.lua ends tasks that are done: they leave their streams. What was not
-- pending is deleted only if the group has delivered it before: after a failover
-- another task, not delivered yet, may have come under the same entry ID.
--
-- It returns for each stream how many of its entries were still pending, or an
-- error.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:st
-- ARGV[1..4] how many entries of each stream    ARGV[5..] their IDs, in that order
local function delivered(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, g in ipairs(groups.err and {} or groups) do
    local info = {}
    for i = 1, #g, 2 do
      info[g[i]] = g[i + 1]
    end
    if info['name'] == 'w' then
      return info['last-delivered-id']
    end
  end
  return '0-0'
end

-- Numbers of up to 20 digits are compared as text.
local function upTo(id, last)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  local lastMs, lastN = string.match(last, '^(%d+)-(%d+)$')
  if ms ~= lastMs then
    return #ms < #lastMs or #ms == #lastMs and ms < lastMs
  end
  return #n < #lastN or #n == #lastN and n <= lastN
end

local out, at, done = {}, 5, 0
for i = 1, 4 do
  local n = tonumber(ARGV[i])
  out[i] = 0
  if n > 0 then
    local last = at + n - 1
    local reply = redis.pcall('XACK', KEYS[i], 'w', unpack(ARGV, at, last))
    if type(reply) == 'table' then
      out[i] = reply.err
    else
      if reply == n then
        redis.call('XDEL', KEYS[i], unpack(ARGV, at, last))
      else
        local end_ = delivered(KEYS[i])
        for k = at, last do
          if upTo(ARGV[k], end_) then
            redis.call('XDEL', KEYS[i], ARGV[k])
          end
        end
      end
      out[i] = reply
      done = done + reply
    end
    at = at + n
  end
end
if done > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'acked', done)
end
return out
