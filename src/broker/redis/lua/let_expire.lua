-- Lets the record of a job that is over go in its time: the entry that had to find it is gone. It goes with
-- its log, or later where it holds an idempotency key.
--
-- KEYS[1] record   KEYS[2] log
-- ARGV[1] the fence under which the run has ended, or '' for any
-- ARGV[2] the place of the entry that is gone (`LANE ENTRY-ID`), or '' for any
-- ARGV[3] most time to live, in ms, of a record whose log is gone
-- ARGV[4] least time to live, in ms, of a record that holds an idempotency key
--
-- Returns 1, or 0 where the job is not over, has ended under another fence, or is carried by another entry,
-- which must find the record. Replay: changes nothing more.
local r = redis.call('HMGET', KEYS[1], 'state', 'fence', 'place', 'fp')
if r[1] ~= 'done' and r[1] ~= 'failed' and r[1] ~= 'cancelled' then return 0 end
if ARGV[1] ~= '' and r[2] ~= ARGV[1] or ARGV[2] ~= '' and r[3] ~= ARGV[2] then return 0 end
local left, key_ttl = redis.call('PTTL', KEYS[2]), r[4] and tonumber(ARGV[4]) or 0
-- A log without a time to live is kept by somebody's hand.
if left == -1 then return 1 end
if left > key_ttl then
  redis.call('PEXPIRE', KEYS[1], left)
else
  redis.call('PEXPIRE', KEYS[1], math.max(key_ttl, left == -2 and tonumber(ARGV[3]) or 1), 'LT')
end
return 1
