-- ARGV: number of databases, number of the first one's copy.
-- Copies each database n to ARGV[2] + n. COPY of miniredis lets the copy of a
-- stream share its entries with the original, so a stream is written anew.

local function pairsOf(list)
  local fields = {}
  for i = 1, #list, 2 do fields[list[i]] = list[i + 1] end
  return fields
end

local function copyStream(key, from, to)
  local entries = redis.call('XRANGE', key, '-', '+')
  local groups = {}
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local fields = pairsOf(group)
    local consumers = {}
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, fields.name)) do
      consumers[#consumers + 1] = pairsOf(consumer).name
    end
    groups[#groups + 1] = {
      name = fields.name, last = fields['last-delivered-id'], consumers = consumers,
      pending = redis.call('XPENDING', key, fields.name, '-', '+', 1000000),
    }
  end
  local ttl = redis.call('PTTL', key)
  redis.call('SELECT', to)
  redis.call('XGROUP', 'CREATE', key, 'copying', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', key, 'copying')
  for _, entry in ipairs(entries) do
    redis.call('XADD', key, entry[1], unpack(entry[2]))
  end
  for _, group in ipairs(groups) do
    redis.call('XGROUP', 'CREATE', key, group.name, group.last)
    for _, consumer in ipairs(group.consumers) do
      redis.call('XGROUP', 'CREATECONSUMER', key, group.name, consumer)
    end
    for _, p in ipairs(group.pending) do
      redis.call('XCLAIM', key, group.name, p[2], 0, p[1], 'IDLE', p[3], 'RETRYCOUNT', p[4], 'FORCE', 'JUSTID')
    end
  end
  if ttl >= 0 then redis.call('PEXPIRE', key, ttl) end
  redis.call('SELECT', from)
end

for db = 0, ARGV[1] - 1 do
  local copy = ARGV[2] + db
  redis.call('SELECT', copy)
  redis.call('FLUSHDB')
  redis.call('SELECT', db)
  for _, key in ipairs(redis.call('KEYS', '*')) do
    if redis.call('TYPE', key).ok == 'stream' then
      copyStream(key, db, copy)
    else
      redis.call('COPY', key, key, 'DB', copy)
    end
  end
end
return 0
