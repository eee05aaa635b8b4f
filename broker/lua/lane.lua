-- lane.lua is put before the scripts that publish. It answers a sequence number that
-- the lane has used before as it was answered then.
--
-- KEYS[1] T:pd  KEYS[2] T:st
-- ARGV[1] lane    ARGV[2] sequence number
local lane, seq, before = ARGV[1], ARGV[2], '0'
local stored = redis.call('HGET', KEYS[1], lane)
if stored then
  before = string.match(stored, '^1:(%d+):')
  if not before then
    return redis.error_reply('ERR the record of lane ' .. lane .. ' is of another version')
  end
  if tonumber(seq) <= tonumber(before) then
    -- Written again, so that a WAIT behind this script covers it: at maxmemory
    -- too, which the write before it sees to.
    redis.call('HDEL', KEYS[1], '')
    redis.call('HSET', KEYS[1], lane, stored)
    return before .. string.sub(stored, 2)
  end
end

-- finish notes the verdicts of a batch of which so many tasks were added.
local function finish(verdicts, added)
  local record = ':' .. seq .. ':' .. verdicts
  redis.call('HSET', KEYS[1], lane, '1' .. record)
  if added > 0 then
    redis.pcall('HINCRBY', KEYS[2], 'published', added)
  end
  return before .. record
end
