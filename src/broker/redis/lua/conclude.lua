-- Ends an attempt: its last events and its state, all or nothing.
--
-- KEYS[1] record   KEYS[2] log   KEYS[3] the job's channel
-- ARGV[1] fence   ARGV[2] state: `done`, `failed`, `cancelled` or `parked`
-- ARGV[3] the log's time to live in ms, for `parked` the record's, too   ARGV[4] delay in ms, for `parked`;
-- else the least time to live, in ms, of a record that holds an idempotency key
-- ARGV[5] most bytes of a log that is rewritten into its least space, or 0   ARGV[6] failure as JSON, or ''
-- ARGV[7] n, then n values: field, value, …   then sequence, event name, payload, …
--
-- The record of a job that is over keeps the time that it has, which is nearly that of a job: its entry may
-- come again, and must find it.
-- Returns `yes`, `fenced`, `behind`, `missing` or `cancelled` (the job is to be cancelled: it can
-- end in no other way); only `yes` has written anything.
-- Replay: `yes`, without writing, while the state stands under the same fence.
local record, log, fence, state, ttl = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local r = redis.call('HMGET', record, 'fence', 'state', 'failures', 'cancel', 'fp')
if r[1] ~= fence then return 'fenced' end
if r[2] ~= 'running' then return r[2] == state and 'yes' or 'fenced' end
if r[4] and state ~= 'cancelled' then return 'cancelled' end

local first = 8 + tonumber(ARGV[7])
for i = first, #ARGV, 3 do
  local id = fence .. '-' .. ARGV[i]
  local added = redis.pcall('XADD', log, 'NOMKSTREAM', id, ARGV[i + 1], ARGV[i + 2])
  -- Only the first can be refused: the sequence rises within a call.
  if not added then return 'missing' end
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'equal or smaller', 1, true) then return 'behind' end
    return redis.error_reply(added.err)
  end
end

local set = {'state', state}
local function put(field, value) set[#set + 1] = field; set[#set + 1] = value end
if ARGV[6] ~= '' then
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  if state == 'parked' then put('due', now + ARGV[4]) end
  put('failures', (tonumber(r[3]) or 0) + 1)
  put('error', ARGV[6])
  local h = redis.call('HMGET', record, 'history', 'attempt')
  -- At most 32 setbacks are kept; each is a line.
  local _, lines = string.gsub(h[1] or '', '\n', '')
  local kept = lines >= 32 and string.gsub(h[1], '^[^\n]*\n', '') or h[1] or ''
  put('history', kept .. '{"attempt":' .. (h[2] or 0) .. ',"at":' .. string.format('%.0f', now)
    .. ',"error":' .. ARGV[6] .. '}\n')
end
for i = 8, first - 1 do set[#set + 1] = ARGV[i] end
redis.call('HSET', record, unpack(set))
-- The key outlives the answer: another job under it would be paid for again.
local least = state == 'parked' and ttl or r[5] and ARGV[4]
if least then redis.call('PEXPIRE', record, least, 'GT') end
local compacted = false
local most = tonumber(ARGV[5])
if most > 0 then
  -- A small stream holds a preallocated node of 4 KB; IDs survive the rewriting.
  local bytes = redis.pcall('DUMP', log)
  if type(bytes) == 'string' and #bytes <= most then
    local restored = redis.pcall('RESTORE', log, ttl, bytes, 'REPLACE')
    compacted = restored.ok ~= nil
  end
end
if not compacted then redis.call('PEXPIRE', log, ttl) end
for i = first, #ARGV, 3 do
  redis.pcall('PUBLISH', KEYS[3], fence .. '-' .. ARGV[i] .. ' ' .. ARGV[i + 1] .. ' ' .. ARGV[i + 2])
end
return 'yes'
