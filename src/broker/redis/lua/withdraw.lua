-- Withdraws the reservation of a job that a full queue has refused. It lasts a little longer: another
-- call with the same key may have found room, and be about to write the record.
--
-- KEYS[1] record   ARGV[1] fingerprint of the request   ARGV[2] how long it still lasts, in ms
--
-- Returns 1 when it was withdrawn, else 0: the job was added after all, or the ID is another's.
-- Replay: withdraws it once more; one that is made anew in between is short, too, and whoever adds its
-- job writes all of the record.
local r = redis.call('HMGET', KEYS[1], 'fp', 'added', 'state', 'queue')
if r[1] ~= ARGV[1] or r[2] or r[3] or r[4] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
