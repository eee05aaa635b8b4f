-- limit.lua asks the limit in KEYS[1] for a call: the generic cell rate algorithm. The key
-- holds the instant at which the whole burst is there again, by the server's clock in
-- µs, and is gone by then. It returns {1, the time until that instant} if the call is
-- allowed, after it; {0, that time} if not, and takes nothing.
--
-- KEYS[1] limit
-- ARGV[1] what the call takes, µs; 0: it is not made
-- ARGV[2] the whole burst, µs
local t = redis.call("TIME")
local now = t[1] * 1000000 + t[2]
local cost, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local ahead = (tonumber(redis.call("GET", KEYS[1]) or "0") or 0) - now
if not (ahead > 0) then -- what is no number is nothing, and so is "nan"
  ahead = 0
end
-- Further ahead than the burst is what a greater limit has left, or a clock that was
-- set back. It is written down how much of that counts, or it would not get less.
local tooFar = ahead > burst
ahead = math.min(ahead, burst)
local allowed = ahead + cost <= burst
if allowed then
  ahead = ahead + cost
end
if tooFar or allowed and cost > 0 then
  local full = now + ahead
  -- Redis keeps a key to the end of its millisecond: PX would end it earlier, which
  -- would give some of the burst away.
  redis.call("SET", KEYS[1], string.format("%.0f", full), "PXAT", string.format("%.0f", math.ceil(full / 1000)))
end
return {allowed and 1 or 0, ahead}
