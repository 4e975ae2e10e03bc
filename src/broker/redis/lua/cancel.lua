-- Cancels a job, or notes that its attempt is to end so.
--
-- KEYS[1] record   KEYS[2] log   KEYS[3] the job's channel
-- ARGV[1] what the channels of workers begin with   ARGV[2] time to live in ms
-- ARGV[3] a name of this call, the same when its reply was lost and it is made again
-- ARGV[4] the run that is meant
--
-- Returns {verdict, the state before, worker or partition, run}; the verdict is
--   cancelled   no attempt runs: `cancelled` is written under a new fence, where it was not before
--   asked       an attempt runs: noted, and its worker told
--   again       as `asked`, and it was noted before; the worker is told once more
--   over        the run had ended before in another way
--   unknown     there is no such record
--   moved       the job is in another run: that one was not meant
-- Replay: answers as before and writes nothing; under the same name as if it were the first time. A first
-- sending that comes behind its own replay, when a later run is open, is answered `moved`.
local record, log = KEYS[1], KEYS[2]
local r = redis.call('HMGET', record,
  'state', 'fence', 'attempt', 'worker', 'queue', 'custom_id', 'labels', 'cancel', 'run')
-- A value of more than 64 bytes stands in parts.
local function whole(name, value)
  local parts = {}
  local more = not value and redis.call('HGET', record, name .. '.0')
  while more do
    parts[#parts + 1] = more
    more = redis.call('HGET', record, name .. '.' .. #parts)
  end
  return value or #parts > 0 and table.concat(parts)
end
local state, run = r[1] or 'waiting', tonumber(r[9]) or 1
-- A reservation holds neither: its job may never be added.
if not r[1] and not r[5] then return {'unknown', '', '', run} end
if run ~= tonumber(ARGV[4]) then return {'moved', state, '', run} end
if state == 'done' or state == 'failed' then return {'over', state, '', run} end
if state == 'cancelled' then
  return {'cancelled', r[8] == ARGV[3] and 'waiting' or state, r[5] or '', run}
end
if state == 'running' then
  local again = r[8] and r[8] ~= ARGV[3]
  -- The wish first, then the word: a worker that misses it reads the record.
  redis.call('HSET', record, 'cancel', again and r[8] or ARGV[3])
  local job = string.match(record, '{job:(.-)}')
  redis.pcall('PUBLISH', ARGV[1] .. (r[4] or ''), 'cancel ' .. job)
  return {again and 'again' or 'asked', state, r[4] or '', run}
end

local payload = '{"attempts":' .. (tonumber(r[3]) or 0)
local custom_id, labels = whole('custom_id', r[6]), whole('labels', r[7])
if custom_id then payload = payload .. ',"custom_id":' .. cjson.encode(custom_id) end
if labels then payload = payload .. ',"labels":' .. labels end
payload = payload .. '}'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local top = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local logged = top and tonumber(string.match(top[1], '^(%d+)')) or 0
local fence = string.format('%.0f', math.max((tonumber(r[2]) or 0) + 1, logged + 1, now))
redis.call('XADD', log, fence .. '-0', 'cancelled', payload)
redis.call('HSET', record, 'state', 'cancelled', 'fence', fence, 'ended', string.format('%.0f', now),
  'cancel', ARGV[3])
-- Its entry must still find it, however long that takes; a schedule's time is longer still.
local left = math.max(redis.call('PTTL', record), tonumber(ARGV[2]))
redis.call('PEXPIRE', record, left)
redis.call('PEXPIRE', log, left)
redis.pcall('PUBLISH', KEYS[3], fence .. '-0 cancelled ' .. payload)
return {'cancelled', state, r[5] or '', run}
