-- Moves an entry to the dead letters, which count nothing.
--
-- KEYS[1] lane   KEYS[2] dead letters   KEYS[3] load
-- ARGV[1] the entry's ID   ARGV[2] most dead letters: the caller drops older ones
-- ARGV[3] the tenant that the entry counts for, or ''   ARGV[4] bytes that it counts
-- ARGV[5] `1` where the server may have forgotten the entry: then its job is buried without it
-- ARGV[6] `1` where the record has told of the failure: another entry of the job may have been buried for it
-- ARGV[7…] field, value, …: first `id` and the job's ID, later `fence` and the fence of the failure
--
-- In both cases no letter is written where one of the last 64, or of those that come to a mebibyte, is that of
-- the same failure.
--
-- Returns {1 when the entry was buried, 0 when it was gone, how many letters there are beyond the most}.
-- Replay: changes nothing. The letter is added before the entry is deleted: a server that does not take it
-- (it is full) keeps the entry. Should it stop in between, both are there: the entry is buried again, and of
-- two letters the run that one of them opens makes the other stale.
local fields, own = {}, {}
for i = 7, #ARGV, 2 do
  fields[#fields + 1], fields[#fields + 2] = ARGV[i], ARGV[i + 1]
  own[ARGV[i]] = ARGV[i + 1]
end
local function is_buried()
  local last, looked, bytes = '+', 0, 0
  -- One at a time, for they may be large. A second letter does less harm than a server that stands still.
  while looked < 64 and bytes < 1048576 do
    local letter = redis.call('XREVRANGE', KEYS[2], last, '-', 'COUNT', 1)[1]
    if not letter then return false end
    local found = {}
    for i = 1, #letter[2], 2 do
      found[letter[2][i]] = letter[2][i + 1]
      bytes = bytes + #letter[2][i + 1]
    end
    if found.id == own.id and found.fence == own.fence then return true end
    last, looked = '(' .. letter[1], looked + 1
  end
  return false
end
local there = #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
local buried = (there == 0 and ARGV[5] == '1' or there == 1 and ARGV[6] == '1') and is_buried()
if there == 0 and (ARGV[5] ~= '1' or buried) then
  redis.call('XACK', KEYS[1], 'workers', ARGV[1])
  return {0, 0}
end
if not buried then redis.call('XADD', KEYS[2], '*', unpack(fields)) end
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('XACK', KEYS[1], 'workers', ARGV[1])
if there == 1 and ARGV[3] ~= '' then give_back(KEYS[3], tonumber(ARGV[4]), {[ARGV[3]] = 1}) end
return {1, math.max(0, redis.call('XLEN', KEYS[2]) - ARGV[2])}
