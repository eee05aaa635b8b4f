-- queue.lua is the beginning of every script that may hand a lock over. The
-- queue of a lock is a list of entries: a token of 23 bytes, which says who
-- waits, and behind it the process that it waits in, which is the end of the
-- name of the channel that the process listens to.
--
-- It begins with a letter that says how: 'p', all locks have one channel,
-- <namespace>:lock:p:<process>; 's', on Cluster, each lock has its own, by SPUBLISH.
local claim = 2000 -- how long a lock is set aside for a waiter, milliseconds
local life = 60000 -- how long the queue outlives the last sign of its waiters

-- clock returns the server's time in microseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- tell sends a message to who waits under entry, and returns how many
-- connections took it: 0, the process is gone; nil, it was refused, by the ACL.
local function tell(lease, entry, text)
  local process, n = string.sub(entry, 24), nil
  if string.sub(process, 1, 1) == 's' then
    n = redis.pcall('SPUBLISH', lease .. ':p:' .. process, text)
  else
    n = redis.pcall('PUBLISH', string.sub(lease, 1, string.find(lease, '{', 1, true) - 1) .. 'p:' .. process, text)
  end
  if type(n) == 'number' then
    return n
  end
end

-- wake hands the lock over if nobody has it: it is set aside for the first in
-- the queue whose process is there, who is told "y", its token, the time, and
-- behind a blank the key of the lease.
-- The one behind that is told "s" and its token: it is to call wake again when
-- the lock was set aside for long enough. Who is gone is taken out. It returns 1
-- if it may not publish, else 0. Anybody may call it at any time.
local function wake(lease, queue)
  if redis.call('EXISTS', lease) == 1 then
    return 0
  end
  local granted = false
  for _ = 1, 100 do
    local entry = redis.call('LINDEX', queue, 0)
    if not entry then
      return 0
    end
    local token = string.sub(entry, 1, 23)
    local n
    if granted then
      n = tell(lease, entry, 's' .. token)
    else
      n = tell(lease, entry, 'y' .. token .. string.format('%.0f', clock()) .. ' ' .. lease)
    end
    if not n then
      return 1
    end
    if granted and n > 0 then
      return 0
    end
    redis.call('LPOP', queue)
    if n > 0 then
      redis.call('SET', lease, token, 'PX', claim)
      granted = true
    end
  end
  return 0
end

-- join puts an entry at the end of the queue unless it is there, and returns
-- whether it was missing.
local function join(queue, entry)
  local missing = 0
  if not redis.call('LPOS', queue, entry) then
    redis.call('RPUSH', queue, entry)
    missing = 1
  end
  redis.call('PEXPIRE', queue, life)
  return missing
end
