-- fetch.lua ends tasks that are done (see ends.lua, which is put before it), and
-- reads new tasks for a consumer, from the streams in their order.
--
-- It returns {state, time, done, done, done, done, tasks, revoking}. The state is
-- "" or the error of a stream, behind which the others were read all the same; or
-- "gone" if the consumer has no heartbeat, "paused" if the partition is, and
-- nothing was read. Then the server's time in ms; what ends returns; and the
-- tasks: where a stream begins its number, counted from 0; then for each of its tasks
-- the entry ID, with an x behind it if the task was revoked, and the envelope. At
-- last 1 if any task is revoked, else 0. (To make one string of it all would take
-- longer than all else: Redis' Lua hashes each byte of a string that it makes.)
--
-- XREADGROUP is bounded by a number of tasks only. So it is asked for few at a
-- time, for one after a task of more than 128 KiB, and for no more once they have
-- 2 MiB together.
--
-- KEYS[1] T:hb:<consumer>  KEYS[2..5] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[6] T:st
-- KEYS[7] T:rv  KEYS[8] T:pause  KEYS[9..] as in ack.lua
-- ARGV[1] consumer    ARGV[2] tasks at most    ARGV[3] how many to read at a time
-- ARGV[4..] what ends reads
local done = ends(string.sub(KEYS[6], 1, -3), KEYS[6], 2, 4)
local revoking = redis.pcall('ZCARD', KEYS[7])
revoking = type(revoking) == 'number' and revoking > 0
local out = {'', milliseconds(), done[1], done[2], done[3], done[4], {}, revoking and 1 or 0}
if redis.call('EXISTS', KEYS[1]) == 0 then
  out[1] = 'gone'
  return out
elseif redis.call('EXISTS', KEYS[8]) == 1 then
  out[1] = 'paused'
  return out
end
local tasks, k, left, step, bytes, i = out[7], 0, tonumber(ARGV[2]), tonumber(ARGV[3]), 0, 2
while i <= 5 and left > 0 and bytes < 2097152 do
  local count, found = math.min(left, step), {}
  -- Most of the time only the default priority's stream has tasks. (One that holds
  -- another type answers with its error to the read.)
  local reply = i ~= 4 and redis.pcall('XLEN', KEYS[i])
  reply = reply ~= 0 and redis.pcall('XREADGROUP', 'GROUP', 'w', ARGV[1], 'COUNT', count, 'STREAMS', KEYS[i], '>')
  if type(reply) == 'table' and reply.err then
    out[1] = reply.err
  elseif type(reply) == 'table' and reply[1] then
    found = reply[1][2]
    k = k + 1
    tasks[k] = i - 2
  end
  for j = 1, #found do
    local id, envelope = found[j][1], found[j][2]
    envelope = type(envelope) == 'table' and envelope[2] or ''
    if #envelope > 131072 then
      step = 1
    end
    local own = revoking and parse(envelope).id
    tasks[k + 1] = own and redis.call('ZSCORE', KEYS[7], own) and id .. 'x' or id
    tasks[k + 2] = envelope
    k, bytes = k + 2, bytes + #envelope
  end
  left = left - #found
  if #found < count then
    i = i + 1
  end
end
return out
