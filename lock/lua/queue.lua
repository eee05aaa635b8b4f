-- queue.lua is the beginning of every script that may hand over what it finds free.

-- clock returns the server's time in microseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
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
