-- queue.lua is the beginning of every script that may hand a lock over. The
-- queue of a lock is a list of entries, which say who waits and how the lease is to
-- be made:
--
--   a token, 23 bytes
--   the process that waits, 17 bytes, the end of the name of the channel that it
--     listens to. It begins with a letter that says how: 'p', all locks have one
--     channel, <namespace>:lock:p:<process>; 's', on Cluster, each lock has its
--     own, by SPUBLISH
--   the TTL of the lease in milliseconds
--   the beginning of what follows the token in the lease, for people who look: the
--     time when it was made, in milliseconds, and a brace are missing
local claim = 2000 -- how long a lease that is handed over lives at the most until its first renewal, milliseconds
local queueLife = 60000 -- how long the queue outlives the last sign of its waiters

-- clock returns the server's time in microseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- tell sends a message to a process, and returns how many connections took it: 0,
-- the process is gone; nil, it was refused, by the ACL.
local function tell(lease, process, text)
  local n
  if string.sub(process, 1, 1) == 's' then
    n = redis.pcall('SPUBLISH', lease .. ':p:' .. process, text)
  else
    n = redis.pcall('PUBLISH', string.sub(lease, 1, string.find(lease, '{', 1, true) - 1) .. 'p:' .. process, text)
  end
  if type(n) == 'number' then
    return n
  end
end

-- hand gives the lease to the first in the queue whose process is there, with a
-- short life until he renews it, and tells him "y", his token, the time, a blank,
-- the fencing token, a blank, and the key of the lease. Who is gone is taken out.
-- Without anybody the lease is deleted. It returns that life in milliseconds: who
-- asked is to call wake when it is over, since he who got the lease may be stopped.
-- It returns 0 if nobody is there, -1 if it may not publish. The lease must be free,
-- or be to be given on; entry was taken off the queue.
local function hand(lease, queue, counter, entry)
  local now = clock()
  local fence = draw(counter, now)
  local ms = math.floor(now / 1000)
  local patience = 100 -- entries of who is gone, so that no call takes long
  while entry and patience > 0 do
    local ttl, about = string.match(entry, '^(%d+)(.*)$', 41)
    if ttl then
      local token, life = string.sub(entry, 1, 23), math.min(tonumber(ttl), claim)
      redis.call('SET', lease, token .. about .. string.format('%.0f}', ms), 'PXAT', string.format('%.0f', ms + life))
      local n = tell(lease, string.sub(entry, 24, 40), 'y' .. token .. string.format('%.0f %.0f ', now, fence) .. lease)
      if not n then
        redis.call('LPUSH', queue, entry)
        redis.call('PEXPIRE', queue, queueLife)
        redis.call('DEL', lease)
        return -1
      elseif n > 0 then
        return life
      end
    end
    entry = redis.call('LPOP', queue)
    patience = patience - 1
  end
  if entry then
    redis.call('LPUSH', queue, entry)
    redis.call('PEXPIRE', queue, queueLife)
    redis.call('DEL', lease)
    return 1 -- who asked is to go on
  end
  redis.call('DEL', lease)
  return 0
end

-- wake hands the lock over if nobody has it, and returns what hand does. Anybody
-- may call it at any time.
local function wake(lease, queue, counter)
  if redis.call('EXISTS', lease) == 1 then
    return 0
  end
  local entry = redis.call('LPOP', queue)
  return entry and hand(lease, queue, counter, entry) or 0
end

-- join puts an entry at the end of the queue unless it is there, and returns
-- whether it was missing.
local function join(queue, entry)
  local missing = 0
  if not redis.call('LPOS', queue, entry) then
    redis.call('RPUSH', queue, entry)
    missing = 1
  end
  redis.call('PEXPIRE', queue, queueLife)
  return missing
end
