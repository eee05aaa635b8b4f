-- next.lua goes on behind release.lua where somebody waits for the one lock.
if first then
  local worked, life = pcall(hand, KEYS[1], KEYS[2], KEYS[3], first)
  if worked and life > 0 then
    return life
  elseif not worked then -- whatever the counter is, the lease was released
    redis.call('DEL', KEYS[1])
  end
  return redis.status_reply('OK')
end
