-- fetch.lua reads new tasks for a consumer, from the streams in their order.
--
-- It returns {state, stream, entry ID, envelope, stream, entry ID, …}, streams
-- counted from 0. The state is "" or the error of a stream, behind which the
-- others were read all the same; or "gone", and nothing was read, if the consumer
-- has no heartbeat.
--
-- KEYS[1] T:hb:<consumer>  KEYS[2..5] T:s:r, T:s:0, T:s:1, T:s:2
-- ARGV[1] consumer    ARGV[2] tasks at most
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {'gone'}
end
local out, left = {''}, tonumber(ARGV[2])
for i = 2, 5 do
  if left <= 0 then
    break
  end
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'w', ARGV[1], 'COUNT', left, 'STREAMS', KEYS[i], '>')
  if type(reply) == 'table' and reply.err then
    out[1] = reply.err
  elseif type(reply) == 'table' and reply[1] then
    for _, entry in ipairs(reply[1][2]) do
      out[#out + 1] = i - 2
      out[#out + 1] = entry[1]
      out[#out + 1] = type(entry[2]) == 'table' and entry[2][2] or ''
      left = left - 1
    end
  end
end
return out
