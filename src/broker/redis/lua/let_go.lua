-- Lets go of entries that a stranger has deleted under their worker, and counts them.
--
-- KEYS[1] lane   KEYS[2] load   ARGV entry IDs
--
-- Returns how many were pending still. Replay: counts nothing twice.
local lost = redis.call('XACK', KEYS[1], 'workers', unpack(ARGV))
if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', lost) end
return lost
