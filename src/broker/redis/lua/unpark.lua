-- Removes a job from the parked ones.
--
-- KEYS[1] parked   KEYS[2] parked jobs   KEYS[3] load   ARGV[1] job ID
--
-- Returns 1 when it was parked, else 0. Replay: changes nothing.
local stored = redis.call('HGET', KEYS[2], ARGV[1])
local there = redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if there == 1 and stored then
  local tenant, job = string.match(stored, '^%S+ %S+ %d+%S*,load=([^%s,]+)%S* (.*)$')
  if tenant then give_back(KEYS[3], #job, {[tenant] = 1}) end
end
return there
