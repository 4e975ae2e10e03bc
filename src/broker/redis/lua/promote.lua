-- Moves parked jobs whose time has come to their lanes, in the order of their times.
--
-- KEYS[1] parked   KEYS[2] parked jobs   KEYS[3] high   KEYS[4] normal   KEYS[5] low
-- ARGV[1] most jobs to move   ARGV[2] wake channel
--
-- A parked job is `LANE AT ATTEMPT[,FIELD=VALUE…] JOB`; the fields go into its entry.
-- Returns {moved, ms until the next is due or -1 when none is parked}.
-- Replay: a job is removed from the parked ones as it is added to its lane, so it moves once.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lanes = {high = KEYS[3], normal = KEYS[4], low = KEYS[5]}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  local stored = redis.call('HGET', KEYS[2], id)
  if stored then
    local lane, at, attempt, more, job = string.match(stored, '^(%S+) (%S+) (%d+)(%S*) (.*)$')
    local fields = {'job', job, 'id', id, 'at', at, 'attempt', attempt}
    for name, value in string.gmatch(more, ',([^=,]+)=([^,]*)') do
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
    redis.call('XADD', lanes[lane], '*', unpack(fields))
    redis.call('HDEL', KEYS[2], id)
  end
  redis.call('ZREM', KEYS[1], id)
end
if #due > 0 then redis.pcall('PUBLISH', ARGV[2], 'added') end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not next[2] then return {#due, -1} end
return {#due, math.max(0, tonumber(next[2]) - now)}
