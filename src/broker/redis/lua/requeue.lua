-- Puts a dead letter's entry back into its lane.
--
-- KEYS[1] dead letters   KEYS[2] lane
-- ARGV[1] the letter's name   ARGV[2] wake channel   ARGV[3] `1` where the caller has opened the run
-- ARGV[4…] field, value, … of the entry
--
-- Returns 1 when the entry was added, 0 when the letter was gone. Replay: changes nothing, unless the
-- caller has opened the run: then a second entry is added, and begin drops it. A letter purged in
-- between must not leave an open run without an entry.
local there = #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) > 0
if not there and ARGV[3] ~= '1' then return 0 end
local fields = {}
for i = 4, #ARGV do fields[#fields + 1] = ARGV[i] end
-- Added before it is deleted: what the server does not take is not lost.
redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XDEL', KEYS[1], ARGV[1])
redis.pcall('PUBLISH', ARGV[2], 'added')
return 1
