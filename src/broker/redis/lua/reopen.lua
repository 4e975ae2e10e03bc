-- Opens a new run of a dead letter's job.
--
-- KEYS[1] record   KEYS[2] log   KEYS[3] the job's channel
-- ARGV[1] the letter's name   ARGV[2] the fence under which it failed   ARGV[3] the run that failed
-- ARGV[4] time to live in ms   ARGV[5] the run that the record has told the caller, or ''
-- ARGV[6…] field, value, …: immutable fields, written where no record
-- tells them
--
-- Returns {verdict, run or state}: `yes` with the run that was opened, `again` with the one that this
-- letter has opened before, or `no` with the state of a job that is not dead, or not by this letter.
-- Replay: `again`, or `no` once the run is over, and nothing is written. A first sending that comes behind
-- its own replay finds another run than the one that its caller was told, and opens nothing.
local record, log, letter = KEYS[1], KEYS[2], ARGV[1]
local r = redis.call('HMGET', record, 'state', 'fence', 'run', 'letter', 'place', 'queue')
local known = redis.call('EXISTS', record) == 1
local state = r[1] or (known and 'waiting' or '')
local run = tonumber(r[3]) or 1
local over = state == '' or state == 'failed' or state == 'cancelled'
if r[4] == letter and not over and state ~= 'done' then return {'again', tostring(run)} end
-- The run that this letter opened has begun or failed, so its entry was added and the letter is gone:
-- this is a replay, of a call whose reply was lost.
if r[4] == letter and (state == 'failed' or r[5]) then return {'no', state} end
-- A letter of an earlier run was put back by somebody else, and has no entry to give.
if not over or (known and run ~= tonumber(ARGV[3]) and r[4] ~= letter) then return {'no', state} end

-- Whoever opened a run since has seen to this letter.
if known and (r[3] or '') ~= ARGV[5] then return {'no', state} end

run = math.max(run, tonumber(ARGV[3])) + 1
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local top = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local logged = top and tonumber(string.match(top[1], '^(%d+)')) or 0
local fence = string.format('%.0f',
  math.max((tonumber(r[2]) or 0) + 1, tonumber(ARGV[2]) + 1, logged + 1, now))
local payload = '{"run":' .. run .. '}'
redis.call('XADD', log, fence .. '-0', 'requeued', payload)
if known then
  redis.call('HDEL', record, 'attempt', 'failures', 'crashes', 'history', 'error', 'due', 'began',
    'ended', 'worker', 'place', 'taking', 'cancel', 'usage', 'used', 'finish_reason', 'not_before')
  for part = 0, 15 do redis.call('HDEL', record, 'used.' .. part, 'usage.' .. part) end
end
local set = {'state', 'waiting', 'fence', fence, 'run', run, 'letter', letter}
if not r[6] then
  for i = 6, #ARGV do set[#set + 1] = ARGV[i] end
end
redis.call('HSET', record, unpack(set))
redis.call('PEXPIRE', record, ARGV[4])
redis.call('PEXPIRE', log, ARGV[4])
redis.pcall('PUBLISH', KEYS[3], fence .. '-0 requeued ' .. payload)
return {'yes', tostring(run)}
