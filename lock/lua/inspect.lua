-- inspect.lua returns what is known of a lock: {what the lease holds or '', its
-- PTTL, the last fencing token or '', how many wait}.
--
-- KEYS[1] lease        KEYS[2] counter        KEYS[3] queue
return {redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2]) or '', redis.call('LLEN', KEYS[3])}
