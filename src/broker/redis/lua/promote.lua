-- Moves parked jobs whose time has come to their lanes, in the order of their times.
--
-- KEYS[1] parked   KEYS[2] parked jobs   KEYS[3] high   KEYS[4] normal   KEYS[5] low
-- ARGV[1] most jobs to move
--
-- Returns {moved, ms until the next is due or -1 when none is parked}.
-- Replay: a job is removed from the parked ones as it is added to its lane, so it moves once.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lanes = {high = KEYS[3], normal = KEYS[4], low = KEYS[5]}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  local stored = redis.call('HGET', KEYS[2], id)
  if stored then
    local lane, at, attempt, job = string.match(stored, '^(%S+) (%S+) (%S+) (.*)$')
    redis.call('XADD', lanes[lane], '*', 'job', job, 'id', id, 'at', at, 'attempt', attempt)
    redis.call('HDEL', KEYS[2], id)
  end
  redis.call('ZREM', KEYS[1], id)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not next[2] then return {#due, -1} end
return {#due, math.max(0, tonumber(next[2]) - now)}
