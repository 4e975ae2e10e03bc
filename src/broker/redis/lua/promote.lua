-- Moves parked jobs whose time has come to their lanes, in the order of their times.
--
-- KEYS[1] parked   KEYS[2] parked jobs   KEYS[3] high   KEYS[4] normal   KEYS[5] low
-- KEYS[6] places of entries that came of jobs which cannot be read
-- ARGV[1] most jobs to move   ARGV[2] wake channel   ARGV[3] most bytes to move; one job always moves
-- ARGV[4] how long such a place is kept, in ms
--
-- A parked job is `LANE AT ATTEMPT[,FIELD=VALUE…] JOB`; the fields go into its entry. One that cannot be
-- read becomes an entry that cannot be read, which ends its job: an entry without a field `job`, with
-- the bytes in `parked` where there are any, and goes on counting what it counted. Its place is noted: anybody may
-- add such an entry, and only one that came of a parked job ends that. A lane that this version does not know is the
-- normal one.
-- In a field `%` and two hexadecimal digits stand for a byte.
-- Returns {moved, ms until the next is due or -1 when none is parked}.
-- Replay: a job is removed from the parked ones as it is added to its lane, so it moves once.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lanes = {high = KEYS[3], normal = KEYS[4], low = KEYS[5]}
local most_bytes, moved, bytes = tonumber(ARGV[3]), 0, 0

local function plain(text)
  return (string.gsub(text, '%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end
local function entry(id, stored)
  local lane, at, attempt, more, job = string.match(stored or '', '^(%S+) (%S+) (%d+)(%S*) (.*)$')
  if not lane then
    -- Above every attempt of its record, or it would be taken for an entry that is behind.
    local fields = {'id', id, 'attempt', '4294967295'}
    local function put(name, value) fields[#fields + 1] = name; fields[#fields + 1] = value end
    local run, tenant = string.match(stored or '', '^[^{]*,run=(%d+)'), load_of_parked(stored or '')
    if run then put('run', run) end
    if tenant then put('load', tenant) end
    if stored then put('parked', stored) end
    return KEYS[4], fields, true
  end
  local fields = {'job', job, 'id', id, 'at', at, 'attempt', attempt}
  for name, value in string.gmatch(more, ',([^=,]*)=([^,]*)') do
    fields[#fields + 1] = plain(name)
    fields[#fields + 1] = plain(value)
  end
  return lanes[lane] or KEYS[4], fields
end

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  local size = redis.call('HSTRLEN', KEYS[2], id)
  if moved > 0 and bytes + size > most_bytes then break end
  local lane, fields, unread = entry(id, redis.call('HGET', KEYS[2], id))
  local added = redis.call('XADD', lane, '*', unpack(fields))
  if unread then
    redis.call('HSET', KEYS[6], 'normal ' .. added, id)
    redis.call('PEXPIRE', KEYS[6], ARGV[4])
  end
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[1], id)
  moved, bytes = moved + 1, bytes + size
end
if moved > 0 then redis.pcall('PUBLISH', ARGV[2], 'added') end
-- Told to all, so that no other worker looks for the same.
return {moved, tell_next(KEYS[1], ARGV[2])}
