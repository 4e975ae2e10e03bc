-- Moves an entry to the dead letters, which count nothing.
--
-- KEYS[1] lane   KEYS[2] dead letters   KEYS[3] load
-- ARGV[1] the entry's ID   ARGV[2] most dead letters
-- ARGV[3] the tenant that the entry counts for, or ''   ARGV[4] bytes that it counts
-- ARGV[5…] field, value, …
--
-- Returns {1 when the entry was buried, 0 when it was gone, how many older letters were dropped}.
-- Replay: changes nothing.
local there = redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('XACK', KEYS[1], 'workers', ARGV[1])
if there == 0 then return {0, 0} end
local fields = {}
for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('XADD', KEYS[2], '*', unpack(fields))
local dropped = redis.call('XTRIM', KEYS[2], 'MAXLEN', '=', ARGV[2])
if dropped > 0 then redis.call('HINCRBY', KEYS[3], 'dropped', dropped) end
if ARGV[3] ~= '' then give_back(KEYS[3], tonumber(ARGV[4]), {[ARGV[3]] = 1}) end
return {1, dropped}
