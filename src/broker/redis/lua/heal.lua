-- Writes again what the server has forgotten of a running attempt.
--
-- KEYS[1] record   KEYS[2] log   KEYS[3] the job's channel
-- ARGV[1] fence   ARGV[2] attempt   ARGV[3] failures   ARGV[4] worker   ARGV[5] time to live in ms
-- ARGV[6] run   ARGV[7] n, then n values: field, value, …: what the record says of the job for ever
-- then sequence, event name, payload, …: all that the attempt has sent, from `started`
--
-- A record that was forgotten is left without a place: the entry may be forgotten, too, and another
-- carry the job in its stead. `begin` takes any entry for the one of such a record.
-- Returns `yes` or `fenced`. Replay: appends nothing that is there already.
local record, log, fence = KEYS[1], KEYS[2], ARGV[1]
local r = redis.call('HMGET', record, 'fence', 'state', 'queue')
local known = tonumber(r[1]) or 0
if known > tonumber(fence) then return 'fenced' end
if known == tonumber(fence) and r[2] ~= 'running' then return 'fenced' end
-- The run has come to an end under a fence that the server remembers: it has no other.
if r[2] == 'done' or r[2] == 'failed' or r[2] == 'cancelled' then return 'fenced' end
local top = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local top_fence, top_seq = 0, -1
if top then
  local f, s = string.match(top[1], '^(%d+)-(%d+)$')
  top_fence, top_seq = tonumber(f), tonumber(s)
end
if top_fence > tonumber(fence) then return 'fenced' end
if known < tonumber(fence) then
  redis.call('HSET', record, 'state', 'running', 'fence', fence, 'attempt', ARGV[2],
    'failures', ARGV[3], 'worker', ARGV[4], 'began', fence)
  if tonumber(ARGV[6]) > 1 then redis.call('HSET', record, 'run', ARGV[6]) end
  redis.call('HDEL', record, 'place')
  redis.call('PEXPIRE', record, ARGV[5])
end
local first = 8 + tonumber(ARGV[7])
if not r[3] then redis.call('HSET', record, unpack(ARGV, 8, first - 1)) end
for i = first, #ARGV, 3 do
  if top_fence < tonumber(fence) or tonumber(ARGV[i]) > top_seq then
    local id = fence .. '-' .. ARGV[i]
    redis.call('XADD', log, id, ARGV[i + 1], ARGV[i + 2])
    redis.pcall('PUBLISH', KEYS[3], id .. ' ' .. ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
redis.call('PEXPIRE', log, ARGV[5])
return 'yes'
