-- Opens a fence: for a new attempt (`started`), or to refuse a job that cannot be run (`failed`).
--
-- KEYS[1] record (its name is also the job's channel)   KEYS[2] log
-- ARGV[1] event name: `started` or `failed`
-- ARGV[2] payload; for `started` its JSON object without the opening brace and without `attempt`
-- ARGV[3] worker   ARGV[4] place of the entry (`LANE ENTRY-ID`)   ARGV[5] the entry's attempt
-- ARGV[6] time to live in ms   ARGV[7] failure as JSON, for `failed`
-- ARGV[8…] field, value, …: immutable fields, written where the producer left no record
--
-- Returns {verdict, fence, attempt, failures, due, error}; the verdict is
--   begun    the fence is open and its first event written
--   remove   the run is over, or another entry carries the job
--   park     the last attempt asked for a retry, and this is its entry: park it until `due`
--   bury     the job has failed, and this is its entry
-- Replay: by the same worker for the same entry, while the log ends in its `started`, it answers
-- `begun` with the fence that it has and writes nothing. Once more was written a new attempt opens:
-- its text could not be told from the old one's. A replayed refusal answers `bury`.
local record, log = KEYS[1], KEYS[2]
local event, payload, worker, place = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local r = redis.call('HMGET', record,
  'state', 'fence', 'attempt', 'failures', 'place', 'worker', 'due', 'error', 'queue', 'at')
local state = r[1] or 'waiting'
local fence, attempt, failures = tonumber(r[2]) or 0, tonumber(r[3]) or 0, tonumber(r[4]) or 0
local same = r[5] == place

local function answer(verdict)
  return {verdict, string.format('%.0f', fence), attempt, failures, r[7] or '0', r[8] or ''}
end

if state == 'done' then return answer('remove') end
if state == 'failed' then return answer(same and 'bury' or 'remove') end
if state == 'running' and not same then return answer('remove') end
if state == 'parked' and same then return answer('park') end
if not same and tonumber(ARGV[5]) < attempt then return answer('remove') end
if state == 'running' and r[6] == worker and event == 'started' then
  local top = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if top and top[1] == string.format('%.0f-0', fence) then return answer('begun') end
end

if event == 'started' then
  attempt = attempt + 1
  payload = '{"attempt":' .. attempt .. ',' .. payload
end
-- The server's own choice of an ID is its time, and above all that the log holds.
local id = redis.call('XADD', log, '*', event, payload)
local ms, seq = string.match(id, '^(%d+)-(%d+)$')
local now = tonumber(ms)
if now > fence and seq == '0' then
  fence = now
else
  -- Its clock is behind the fence, or the log ends in this very millisecond.
  redis.call('XDEL', log, id)
  fence = math.max(fence, now) + 1
  id = string.format('%.0f-0', fence)
  redis.call('XADD', log, id, event, payload)
end
local set = {'fence', string.format('%.0f', fence), 'attempt', attempt, 'place', place}
local function put(field, value) set[#set + 1] = field; set[#set + 1] = value end
if event == 'started' then
  put('state', 'running'); put('worker', worker); put('began', now)
else
  r[8] = ARGV[7]
  put('state', 'failed'); put('error', ARGV[7]); put('ended', now)
end
if not r[9] then
  for i = 8, #ARGV, 2 do put(ARGV[i], ARGV[i + 1]) end
end
redis.call('HSET', record, unpack(set))
-- A record of the last hour has its whole time before it.
if not r[9] or now - (tonumber(r[10]) or 0) > 3600000 then
  redis.call('PEXPIRE', record, ARGV[6])
end
redis.call('PEXPIRE', log, ARGV[6])
redis.pcall('PUBLISH', record, id .. ' ' .. event .. ' ' .. payload)
return answer(event == 'started' and 'begun' or 'bury')
