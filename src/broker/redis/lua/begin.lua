-- Opens a fence: for an attempt, or to end a job without one.
--
-- KEYS[1] record   KEYS[2] log   KEYS[3] the job's channel
-- ARGV[1] event name: `started`, `failed` or `cancelled`
-- ARGV[2] payload; for `started` its JSON object without the opening brace and without `attempt`
-- ARGV[3] worker   ARGV[4] place of the entry (`LANE ENTRY-ID`)   ARGV[5] the entry's attempt
-- ARGV[6] the entry's run   ARGV[7] `1` where its last worker let the lease run out, else `0`
-- ARGV[8] time to live in ms   ARGV[9] most crashes   ARGV[10] `1` where no other suspect runs
-- ARGV[11] not to begin after, or `0`   ARGV[12] failure as JSON, for `failed`
-- ARGV[13] not to begin before, or `0`
-- ARGV[14] the tenant that the entry names, or '' where it cannot be read   ARGV[15] when it says that its
-- job was enqueued, or '' of a parked job that could not be read
-- ARGV[16] number of this taking: it rises with each time that the entry is given to a worker, and with
-- each attempt that this worker asks for   ARGV[17] the sum of the entry's job
-- ARGV[18] fingerprint of its request, or '' where it was not found out   ARGV[19] `1` where its ID is of a key
-- ARGV[20] the letter that has opened its run   ARGV[21] the fence of that letter; or ''
-- ARGV[22…] field, value, …: immutable fields, written where the record does not tell them
--
-- Returns {verdict, fence, attempt, failures, due or crashes, error}; the verdict is
--   begun    the fence is open and its first event written
--   remove   the run is over, or another entry carries the job
--   park     the last attempt asked for a retry, and this is its entry: park it until `due`; or its time has
--            not come, and then no more was written than the immutable fields
--   bury     the job has failed, and this is its entry
--   foreign  nothing was written: the record is that of another job, or the run was opened by nobody
--   prove    nothing was written: the fingerprint is asked for
--   newer    nothing was written: the record's state, told in place of the error, is one of a newer version
--   late     nothing was written: the entry was taken again since, or this taking's attempt is over
--   alone    nothing was written: the job may be lost only once more, and has to run alone
--   cancel, expired, poison   nothing was written: the job is to be ended without an attempt
-- Replay: while its attempt runs, the same taking is answered `begun` with the fence that it has, whatever
-- the log holds by then, and nothing is written; so is a first sending that comes behind its own replay and
-- later calls. Once the attempt is over, or another taking has begun, the answer is `late`. A replayed
-- refusal answers `bury` or `remove`.
local record, log = KEYS[1], KEYS[2]
local event, payload, worker, place = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local r = redis.call('HMGET', record, 'state', 'fence', 'attempt', 'failures', 'place', 'worker',
  'due', 'error', 'queue', 'crashes', 'run', 'cancel', 'began', 'history', 'tenant', 'at', 'not_before',
  'fp', 'added', 'taking', 'sum', 'letter', 'ran')
local state = r[1] or 'waiting'
local fence, attempt, failures = tonumber(r[2]) or 0, tonumber(r[3]) or 0, tonumber(r[4]) or 0
local entry_run, crashes = tonumber(ARGV[6]), tonumber(r[10]) or 0
local run = tonumber(r[11]) or 1
-- Of a record that has a state and no place (just reopened, or healed) any entry is the one.
local same = r[5] == place or (r[1] and not r[5])

local function answer(verdict, number)
  return {verdict, string.format('%.0f', fence), attempt, failures, number or r[7] or '0', r[8] or ''}
end

local set = {}
local function put(field, value) set[#set + 1] = field; set[#set + 1] = value end
local function describe()
  if r[9] then return end
  for i = 22, #ARGV, 2 do
    put(ARGV[i], ARGV[i + 1])
  end
end

-- Anybody who may add an entry may write any ID, run and time into it: the record is believed. The same bytes are
-- the same job.
local function is_strange()
  local readable = ARGV[14] ~= ''
  -- Of a parked job that could not be read nothing else is left.
  if ARGV[15] == '' then
    return r[16] and r[1] ~= 'parked' and (r[1] or not r[17]) and r[5] ~= place
  end
  if readable and r[15] and r[15] ~= ARGV[14] then return true end
  -- A run that the server has forgotten is known by its letter, or by the failure of the run before it, which readers
  -- know as well: that of a cancelled run opens nothing.
  local ended = state == 'done' or state == 'cancelled'
  local opened = r[22] and r[22] == ARGV[20] or r[2] == ARGV[21] and not ended
  if entry_run > run and (r[1] or r[9]) and not opened then return true end
  -- Whoever enqueues an ID again may have written another sum since: the job that has begun is the one.
  local sum = r[23] or r[21]
  if sum == ARGV[17] then return false end
  if r[18] and readable then return ARGV[19] ~= '1' or r[18] ~= ARGV[18] end
  if sum then return true end
  -- The record is of an earlier version.
  return not readable and r[16] and r[16] ~= ARGV[15]
end
if is_strange() then
  local can_prove = ARGV[19] == '1' and ARGV[18] == ''
  return answer(can_prove and r[18] and 'prove' or 'foreign')
end
-- What runs under a key keeps its fingerprint.
if not r[9] and ARGV[19] == '1' and ARGV[18] == '' then return answer('prove') end
if entry_run < run then return answer('remove') end
if entry_run > run and r[1] then
  -- The server has forgotten that this run was opened: what it knows is of the run before.
  redis.call('HDEL', record, 'state', 'attempt', 'failures', 'crashes', 'history', 'error', 'due',
    'began', 'ended', 'worker', 'place', 'taking', 'cancel', 'usage', 'used', 'finish_reason')
  for part = 0, 15 do redis.call('HDEL', record, 'used.' .. part, 'usage.' .. part) end
  state, attempt, failures, crashes, same = 'waiting', 0, 0, 0, false
  r[3], r[5], r[6], r[8], r[12], r[13], r[14] = false, false, false, false, false, false, false
end
if state == 'done' or state == 'cancelled' then return answer('remove') end
if state == 'failed' then return answer(same and 'bury' or 'remove') end
-- Whether its entry may go is for workers to say that know this state.
if state ~= 'running' and state ~= 'parked' and state ~= 'waiting' then
  r[8] = state
  return answer('newer')
end
if state == 'running' and not same then return answer('remove') end
-- Without a place its attempts tell the entry that is to be parked from the one that came of it.
if state == 'parked' and same and (r[5] or tonumber(ARGV[5]) < attempt) then return answer('park') end
-- A waiting job that has a place was given back, and is carried by the entry that it ran on: whoever
-- was told to remove another may be about to do so.
if state == 'waiting' and r[5] and not same then return answer('remove') end
if not same and tonumber(ARGV[5]) < attempt then return answer('remove') end
-- Only where it is surely the same entry: two tasks of a worker must not share a fence.
local taking, last = tonumber(ARGV[16]), tonumber(r[20])
if r[5] == place and last then
  local mine = r[6] == worker and taking == last
  if mine and state == 'running' then return answer('begun') end
  if mine or taking < last then return answer('late') end
end
if r[12] and event ~= 'cancelled' then return answer('cancel') end

-- A worker that takes over its own entry has lost the task that ran it.
local lost = state == 'running' and (r[6] ~= worker or ARGV[7] == '1')
if lost and ARGV[7] == '1' then crashes = crashes + 1 end
if event == 'started' then
  if crashes >= tonumber(ARGV[9]) then return answer('poison', tostring(crashes)) end
  if lost and crashes >= 2 and ARGV[10] ~= '1' then return answer('alone') end
  local expires, begins = tonumber(ARGV[11]), tonumber(ARGV[13])
  if not r[13] and (expires > 0 or begins > 0) then
    local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    if expires > 0 and now > expires then return answer('expired') end
    if now < begins then
      -- Whoever asks for the job, or cancels it, finds it parked.
      describe()
      if #set > 0 then
        redis.call('HSET', record, unpack(set))
        redis.call('PEXPIRE', record, string.format('%.0f', ARGV[8] + begins - now))
      end
      return answer('park', ARGV[13])
    end
  end
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
put('fence', string.format('%.0f', fence)); put('attempt', attempt); put('place', place)
put('taking', ARGV[16]); put('ran', ARGV[17])
if event == 'started' then
  put('state', 'running'); put('worker', worker); put('began', now)
else
  put('state', event); put('ended', now)
  if event == 'failed' then r[8] = ARGV[12]; put('error', ARGV[12]) end
end
if entry_run > run then put('run', ARGV[6]) end
if lost then
  put('crashes', crashes)
  -- At most 32 setbacks are kept; each is a line.
  local _, lines = string.gsub(r[14] or '', '\n', '')
  local kept = lines >= 32 and string.gsub(r[14], '^[^\n]*\n', '') or r[14] or ''
  put('history', kept .. '{"attempt":' .. (tonumber(r[3]) or 0) .. ',"at":' .. ms
    .. ',"error":{"code":"worker_lost","message":"' .. (r[6] or '') .. ' did not renew its lease"}}\n')
end
describe()
redis.call('HSET', record, unpack(set))
-- A young record has its whole time before it, but for one that was only reserved.
local old = now - (tonumber(r[16]) or 0) > math.min(3600000, tonumber(ARGV[8]) / 8)
if not r[9] or old or (r[18] and not r[19]) then
  redis.call('PEXPIRE', record, ARGV[8])
end
redis.call('PEXPIRE', log, ARGV[8])
redis.pcall('PUBLISH', KEYS[3], id .. ' ' .. event .. ' ' .. payload)
if event == 'started' then return answer('begun') end
return answer(event == 'failed' and 'bury' or 'remove')
