-- refresh.lua lets the caller refresh the stale value in KEYS[1], and nobody else
-- for a while: it writes how long, and the caller's token, into the header. The
-- value and its TTL stay. Calling it again with the same lease is harmless. It
-- returns
--   the server's time in µs if the caller refreshes;
--   0 if another one does, or nobody shall for now;
--   2 if the key holds something else.
--
-- KEYS[1] key
-- ARGV[1] lease: C1 13 and the caller's token
-- ARGV[2] first 12 bytes of the value: kind and soft expiry
-- ARGV[3] how long the caller may take, ms
local head = redis.call("GETRANGE", KEYS[1], 0, 35)
if #head < 36 or string.sub(head, 1, 12) ~= ARGV[2] then
  return 2
end
local t = redis.call("TIME")
local micros = t[1] * 1000000 + t[2]
local time = math.floor(micros / 1000)
if not owns(head, ARGV[1]) and number(head, 13) > time then
  return 0
end
redis.call("SETRANGE", KEYS[1], 12, bytes(time + tonumber(ARGV[3])) .. string.sub(ARGV[1], 3))
return micros
