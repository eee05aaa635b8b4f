-- join.lua gives a consumer its heartbeat and creates the groups that are
-- missing, at the beginning of their streams, and in the first of them the
-- consumer, so that an idle one is seen by who looks. It works at maxmemory too: DEL and
-- XACK are writes, and once a script has written Redis lets it go on.
--
-- It returns the errors of the streams that cannot have a group.
--
-- KEYS[1] T:hb:<consumer>  KEYS[2..5] T:s:r, T:s:0, T:s:1, T:s:2
-- ARGV[1] lease in ms; 0 leaves the heartbeat alone
if ARGV[1] ~= '0' then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
else
  redis.pcall('XACK', KEYS[2], 'w', '0-1')
end
local errors = {}
for i = 2, 5 do
  local reply = redis.pcall('XGROUP', 'CREATE', KEYS[i], 'w', '0', 'MKSTREAM')
  if type(reply) == 'table' and reply.err and not string.find(reply.err, 'BUSYGROUP', 1, true) then
    errors[#errors + 1] = KEYS[i] .. ': ' .. reply.err
  end
end
if ARGV[1] ~= '0' then
  redis.pcall('XGROUP', 'CREATECONSUMER', KEYS[2], 'w', string.match(KEYS[1], '^.-:hb:(.*)$'))
end
return errors
