-- raise.lua sees to it that fencing counters are not below a token that another
-- server of the quorum has drawn. It returns the lowest of them then.
--
-- KEYS: counters
-- ARGV[1] the token
-- ARGV[2] how long the counters live, milliseconds
local token, lowest = tonumber(ARGV[1]), nil
for i = 1, #KEYS do
  local last = tonumber(redis.call('GET', KEYS[i]) or '0')
  if not last or last < token or last >= 9007199254740991 then
    last = token
  end
  redis.call('SET', KEYS[i], string.format('%.0f', last), 'PX', ARGV[2])
  lowest = math.min(lowest or last, last)
end
return lowest
