-- Gives back a running attempt: its budget, never its fence.
--
-- KEYS[1] record   ARGV[1] fence
--
-- Returns `yes` or `fenced`. Replay: `yes`, without writing.
local r = redis.call('HMGET', KEYS[1], 'fence', 'state', 'attempt')
if r[1] ~= ARGV[1] then return 'fenced' end
if r[2] == 'waiting' then return 'yes' end
if r[2] ~= 'running' then return 'fenced' end
redis.call('HSET', KEYS[1], 'state', 'waiting', 'attempt', r[3] - 1)
return 'yes'
