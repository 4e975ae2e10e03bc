-- Lets a record go with its log: the entry that had to find it is gone.
--
-- KEYS[1] record   KEYS[2] log   ARGV[1] the fence under which the run has ended
--
-- Returns 1, or 0 where another fence was opened since, or the record holds an idempotency key. Replay: changes nothing more.
local r = redis.call('HMGET', KEYS[1], 'fence', 'fp')
if r[1] ~= ARGV[1] or r[2] then return 0 end
local left = redis.call('PTTL', KEYS[2])
if left ~= -1 then redis.call('PEXPIRE', KEYS[1], math.max(left, 1), 'LT') end
return 1
