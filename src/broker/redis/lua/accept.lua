-- Writes the record of a job with a key, once its entry was added.
--
-- KEYS[1] record   ARGV[1] time to live in ms   ARGV[2] the entry's ID, or `parked`
-- ARGV[3] fingerprint of the request   ARGV[4…] field, value, …: immutable fields of the record
--
-- Returns nothing. Replay: writes the same. The job may be over by then, and keeps the time that its
-- end has set.
local state = redis.call('HGET', KEYS[1], 'state')
local set = {'added', ARGV[2]}
for i = 4, #ARGV do set[#set + 1] = ARGV[i] end
redis.call('HSET', KEYS[1], unpack(set))
-- The reservation may have run out meanwhile.
redis.call('HSETNX', KEYS[1], 'fp', ARGV[3])
if state ~= 'done' and state ~= 'failed' and state ~= 'cancelled' then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
