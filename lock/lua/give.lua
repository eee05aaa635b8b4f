-- give.lua hands a lock over. The queue of a lock is a list of entries, which say
-- who waits and how the lease is to be made. All has its place, so that little is
-- left to be done while the next one waits:
--
--   a token, 23 bytes
--   the process that waits, 17 bytes, the end of the name of the channel that it
--     listens to. It begins with a letter that says how: 'p', all locks have one
--     channel, <namespace>:lock:p:<process>; 's', on Cluster, each lock has its
--     own, by SPUBLISH
--   how long the lease lives until its first renewal, milliseconds, 4 digits
--   the beginning of what follows the token in the lease, for people who look: the
--     time when it was made, in milliseconds, and a brace are missing
local queueLife = 60000 -- how long the queue outlives the last sign of its waiters

-- hand gives the lease to the first in the queue whose process is there, with a
-- short life until he renews it, and tells him "y", his token, the time, a blank,
-- the fencing token, a blank, and the key of the lease. Who is gone is taken out.
-- Without anybody the lease is deleted. It returns that life in milliseconds: who
-- asked is to call wake when it is over, since he who got the lease may be stopped.
-- It returns 0 if nobody is there, -1 if it may not publish. The lease must be free,
-- or be to be given on; entry was taken off the queue.
local function hand(lease, queue, counter, entry)
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local digits = string.format('%.0f', now)
  local ms = string.sub(digits, 1, -4)
  local _, fence = draw(counter, now, digits)
  local patience = 100 -- entries of who is gone, so that no call takes long
  while entry and patience > 0 do
    local life = tonumber(string.sub(entry, 41, 44))
    if life and life > 0 then
      local token, process = string.sub(entry, 1, 23), string.sub(entry, 24, 40)
      redis.call('SET', lease, token .. string.sub(entry, 45) .. ms .. '}', 'PXAT', ms + life)
      local text, n = 'y' .. token .. digits .. ' ' .. fence .. ' ' .. lease, nil
      if string.sub(process, 1, 1) == 's' then
        n = redis.pcall('SPUBLISH', lease .. ':p:' .. process, text)
      else
        n = redis.pcall('PUBLISH', string.sub(lease, 1, string.find(lease, '{', 1, true) - 1) .. 'p:' .. process, text)
      end
      if type(n) ~= 'number' then -- refused, by the ACL
        redis.call('LPUSH', queue, entry)
        redis.call('PEXPIRE', queue, queueLife)
        redis.call('DEL', lease)
        return -1
      elseif n > 0 then -- connections that took it
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
