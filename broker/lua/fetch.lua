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
-- KEYS[1] T:hb:<consumer>  KEYS[2..5] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[6] T:st
-- KEYS[7] T:rv  KEYS[8] T:pause  KEYS[9..] as in ack.lua
-- ARGV[1] consumer    ARGV[2] tasks at most    ARGV[3..] what ends reads
local done = ends(string.sub(KEYS[6], 1, -3), KEYS[6], 2, 3)
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
local tasks, left = {}, tonumber(ARGV[2])
for i = 2, 5 do
  if left <= 0 then
    break
  end
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'w', ARGV[1], 'COUNT', left, 'STREAMS', KEYS[i], '>')
  if type(reply) == 'table' and reply.err then
    out[1] = reply.err
  elseif type(reply) == 'table' and reply[1] then
    for _, entry in ipairs(reply[1][2]) do
      local envelope = type(entry[2]) == 'table' and entry[2][2] or ''
      local id = revoking and parse(envelope).id
      tasks[#tasks + 1] = (i - 2) .. (id and redis.call('ZSCORE', KEYS[7], id) and 'x ' or ' ') .. entry[1] .. ' ' .. #envelope .. ' '
      tasks[#tasks + 1] = envelope
      left = left - 1
    end
  end
end
out[7] = table.concat(tasks)
return out
