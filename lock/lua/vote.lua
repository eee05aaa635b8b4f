-- vote.lua is how one server of a quorum answers who wants a lease. In front of
-- it stands base, which is redislock's script to obtain.
--
-- It returns {token, the server's time in microseconds, ''}; or {-1, PTTL of the
-- longest lease, the token of who has it}.
--
-- A new token is greater than the last one, at least the server's time, and at
-- least what the caller proposes, so that the servers of a quorum agree.
--
-- KEYS: n leases, then their counters
-- ARGV[1] to [3] what redislock wants: value, length of its token, TTL
-- ARGV[4] how long the counters live, milliseconds
-- ARGV[5] the least token
-- ARGV[6] 1 to draw a new token; else the counters are only raised to the least
local n = #KEYS / 2
local leases = {}
for i = 1, n do
  leases[i] = KEYS[i]
end
if not base(leases, {ARGV[1], ARGV[2], ARGV[3]}) then
  local left, other, size = -2, '', tonumber(ARGV[2])
  for i = 1, n do
    local pttl = redis.call('PTTL', KEYS[i])
    local token = redis.call('GETRANGE', KEYS[i], 0, size - 1)
    if token ~= '' and token ~= string.sub(ARGV[1], 1, size) and left ~= -1 and (pttl == -1 or pttl > left) then
      left, other = pttl, token
    end
  end
  return {-1, left, other}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local token = tonumber(ARGV[5])
if ARGV[6] == '1' then
  token = math.max(token, now)
end
for i = n + 1, 2 * n do
  local last = tonumber(redis.call('GET', KEYS[i]) or '0')
  if last and last >= 0 and last < 9007199254740991 then -- else not written here; beyond 2^53 - 1, last + 1 would be last
    token = math.max(token, last + tonumber(ARGV[6]))
  end
end
for i = n + 1, 2 * n do
  redis.call('SET', KEYS[i], string.format('%.0f', token), 'PX', ARGV[4])
end
return {token, now, ''}
