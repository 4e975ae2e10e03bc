-- Gives record and log of a job that is not over their whole time again.
--
-- KEYS[1] record   KEYS[2] log   ARGV[1] time to live in ms
--
-- Returns 1, or 0 where the job is over: its end has set the time. Replay: begins the time anew.
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'done' or state == 'failed' or state == 'cancelled' then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
