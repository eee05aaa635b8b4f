-- plain.lua adds a lane's batch of tasks as publish.lua does, and returns the same.
-- It is for most batches: all tasks go to one stream, and none has conditions. The
-- server's work for a task is little more than its XADD, so it leaves the envelopes
-- as they are: a time of 0 says that the entry's ID tells when it was published.
--
-- KEYS[1] T:pd  KEYS[2] T:st  KEYS[3] T:s:<priority>
-- ARGV[1] lane    ARGV[2] sequence number    ARGV[3..] envelopes
local pcall, type, ARGV, n, stream = redis.pcall, type, ARGV, #ARGV, KEYS[3]
local verdicts, added = '', 0
for i = 3, n do
  local reply = pcall('XADD', stream, '*', 'e', ARGV[i])
  if type(reply) ~= 'table' then
    added = added + 1
  elseif added == 0 and not string.find(reply.err, 'WRONGTYPE', 1, true) then
    return reply -- nothing was written
  else
    verdicts = verdicts .. string.rep('0', i - 3 - #verdicts) .. 'w'
  end
end
return finish(verdicts, added)
