-- revive.lua makes dead letters ready again (or parks them, if their key has no
-- slot), as their first attempt, published now, and not cancelled any more. A letter is added before it is
-- removed, and what could fail is tried before that.
--
-- It returns for each letter 1 if it was revived; 0 if it is gone or has died anew
-- meanwhile; "corrupt" if its task cannot be read; "held" and the ID of the task
-- that holds its unique key, divided by a blank; or an error, and the letter has
-- stayed.
--
-- KEYS[1] T:dl  KEYS[2] T:dlh  KEYS[3] T:st  KEYS[4..6] T:s:0, T:s:1, T:s:2
-- KEYS[7] T:kz  KEYS[8] T:rv; then the unique and concurrency keys of the letters
-- ARGV[1] T:    then for each letter: its name in T:dl, its score there
local T = ARGV[1]
local now = milliseconds()
local stamp, rest = '', tonumber(now)
for _ = 1, 6 do
  stamp = string.char(rest % 256) .. stamp
  rest = math.floor(rest / 256)
end

local function revive(name, died)
  local score = redis.call('ZSCORE', KEYS[1], name)
  if not score or tonumber(score) ~= tonumber(died) then
    return 0
  end
  local stored = redis.call('HGET', KEYS[2], name)
  local high, low = string.byte(stored or '', 5, 6)
  local envelope = low and string.sub(stored, 7 + high * 256 + low)
  local p = envelope and parse(envelope)
  if not p or not p.id then
    return 'corrupt'
  end
  local unique = p.unique and T .. 'u:' .. p.unique
  local holder = unique and redis.pcall('GET', unique)
  if failed(holder) then
    return holder.err
  elseif holder and holder ~= p.id then
    return 'held ' .. holder
  end
  envelope = string.sub(envelope, 1, 2) .. '\0' .. string.sub(envelope, 4, 4) .. '\0\1' .. string.sub(envelope, 7, 8) .. stamp .. string.sub(envelope, 15)
  local err = enter(T, p, envelope, KEYS[4 + p.priority], now)
  if err then
    return err
  end
  if unique then
    redis.call('SET', unique, p.id, 'PX', 86400000)
  end
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
  redis.pcall('ZREM', KEYS[8], p.id)
  redis.pcall('HINCRBY', KEYS[3], 'revived', 1)
  return 1
end

local out = {}
for at = 2, #ARGV, 2 do
  out[#out + 1] = revive(ARGV[at], ARGV[at + 1])
end
return out
