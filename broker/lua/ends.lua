-- ends.lua is put before the scripts that end tasks that are done.

-- delivered is the last entry that the group has delivered.
local function delivered(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, g in ipairs(groups.err and {} or groups) do
    local info = {}
    for i = 1, #g, 2 do
      info[g[i]] = g[i + 1]
    end
    if info['name'] == 'w' then
      local id = info['last-delivered-id']
      return string.find(id, '-', 1, true) and id or id .. '-0' -- miniredis says what the group was created with
    end
  end
  return '0-0'
end

-- upTo compares entry IDs. Numbers of up to 20 digits are compared as text.
local function upTo(id, last)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  local lastMs, lastN = string.match(last, '^(%d+)-(%d+)$')
  if ms ~= lastMs then
    return #ms < #lastMs or #ms == #lastMs and ms < lastMs
  end
  return #n < #lastN or #n == #lastN and n <= lastN
end

-- ends ends tasks: they leave their streams, KEYS[first] and the three behind it.
-- What was not pending is deleted only if the group has delivered it before: after
-- a failover another task, not delivered yet, may have come under the same entry
-- ID. A task that has been given to another worker meanwhile keeps its keys.
--
-- ARGV[at..at+3] are how many entries of each stream; then their IDs, in that
-- order; then, up to the end of ARGV, for each further task, one that has keys or
-- was revoked: stream (1..4), entry ID, ID of the task, unique key, key of which it has a
-- slot. It returns for each stream how many of its entries were still pending, or an
-- error.
local function ends(T, counters, first, at)
  local out, done, from = {}, 0, at + 4
  for i = 1, 4 do
    local n, key = tonumber(ARGV[at + i - 1]), KEYS[first + i - 1]
    out[i] = 0
    if n > 0 then
      local last = from + n - 1
      local reply = redis.pcall('XACK', key, 'w', unpack(ARGV, from, last))
      if type(reply) == 'table' then
        out[i] = reply.err
      else
        if reply == n then
          redis.call('XDEL', key, unpack(ARGV, from, last))
        else
          local seen = delivered(key)
          for k = from, last do
            if upTo(ARGV[k], seen) then
              redis.call('XDEL', key, ARGV[k])
            end
          end
        end
        out[i] = reply
        done = done + reply
      end
      from = last + 1
    end
  end
  for k = from, #ARGV, 5 do
    local i, entry = tonumber(ARGV[k]), ARGV[k + 1]
    local key = KEYS[first + i - 1]
    local reply = redis.pcall('XACK', key, 'w', entry)
    if type(reply) == 'table' then
      out[i] = reply.err
    else
      local gone = 0
      if reply == 1 or upTo(entry, delivered(key)) then
        gone = redis.call('XDEL', key, entry)
      end
      if reply + gone > 0 then
        unlock(T, ARGV[k + 3], ARGV[k + 2])
        redis.pcall('ZREM', T .. 'rv', ARGV[k + 2])
        vacate(T, ARGV[k + 4], ARGV[k + 2], function(priority) return KEYS[first + 1 + priority] end, milliseconds())
      end
      if type(out[i]) == 'number' then
        out[i] = out[i] + reply
      end
      done = done + reply
    end
  end
  if done > 0 then
    redis.pcall('HINCRBY', counters, 'acked', done)
  end
  return out
end
