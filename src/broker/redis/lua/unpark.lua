-- Removes a job from the parked ones.
--
-- KEYS[1] parked   KEYS[2] parked jobs   ARGV[1] job ID
--
-- Returns 1 when it was parked, else 0. Replay: changes nothing.
local there = redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return there
