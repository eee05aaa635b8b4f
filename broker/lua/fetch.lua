-- fetch.lua ends tasks that are done (see ends.lua, which is put before it), and
-- reads new tasks for a consumer, from the streams in their order.
--
-- It returns {state, time, done, done, done, done, tasks}. The state is
-- "" or the error of a stream, behind which the others were read all the same; or
-- "gone" if the consumer has no heartbeat, "paused" if the partition is, and
-- nothing was read. Then the server's time in ms; what ends returns; and the
-- tasks: for each the stream, counted from 0, with an x behind it if the task was
-- revoked; a space, the entry ID, a space, the bytes of the envelope, a space, and
-- the envelope.
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
local out = {'', milliseconds(), done[1], done[2], done[3], done[4], ''}
local revoking = redis.pcall('ZCARD', KEYS[7])
revoking = type(revoking) == 'number' and revoking > 0
if redis.call('EXISTS', KEYS[1]) == 0 then
  out[1] = 'gone'
  return out
elseif redis.call('EXISTS', KEYS[8]) == 1 then
  out[1] = 'paused'
  return out
end
local tasks, left, step, bytes, i = {}, tonumber(ARGV[2]), tonumber(ARGV[3]), 0, 2
while i <= 5 and left > 0 and bytes < 2097152 do
  local count = math.min(left, step)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'w', ARGV[1], 'COUNT', count, 'STREAMS', KEYS[i], '>')
  local found = {}
  if type(reply) == 'table' and reply.err then
    out[1] = reply.err
  elseif type(reply) == 'table' and reply[1] then
    found = reply[1][2]
  end
  for _, entry in ipairs(found) do
    local envelope = type(entry[2]) == 'table' and entry[2][2] or ''
    local id = revoking and parse(envelope).id
    tasks[#tasks + 1] = (i - 2) .. (id and redis.call('ZSCORE', KEYS[7], id) and 'x ' or ' ') .. entry[1] .. ' ' .. #envelope .. ' '
    tasks[#tasks + 1] = envelope
    bytes = bytes + #envelope
    if #envelope > 131072 then
      step = 1
    end
  end
  left = left - #found
  if #found < count then
    i = i + 1
  end
end
out[7] = table.concat(tasks)
return out
