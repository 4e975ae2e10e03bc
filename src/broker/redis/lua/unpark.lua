-- Removes what is parked of a job's run, or of one before it.
--
-- KEYS[1] parked   KEYS[2] parked jobs   KEYS[3] load   ARGV[1] job ID   ARGV[2] the run
--
-- Returns 1 when it was parked, else 0. Replay: changes nothing, also where a later run has parked
-- the job since.
local stored = redis.call('HGET', KEYS[2], ARGV[1])
if stored then
  local more = string.match(stored, '^%S+ %S+ %d+(%S*) ') or string.match(stored, '^[^{]*')
  local run = tonumber(string.match(more, ',run=(%d+)')) or 1
  if run > tonumber(ARGV[2]) then return 0 end
end
local there = redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if there == 1 and stored then
  local tenant, bytes = load_of_parked(stored)
  if tenant then give_back(KEYS[3], bytes, {[tenant] = 1}) end
end
return there
