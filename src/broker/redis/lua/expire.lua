-- Drops dead letters that have outlived their time, as the caller has seen, and counts them.
--
-- KEYS[1] dead letters   KEYS[2] load   ARGV names of letters, at least one
--
-- Returns how many were there. Replay: drops, and counts, nothing twice.
local dropped = redis.call('XDEL', KEYS[1], unpack(ARGV))
if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', dropped) end
return dropped
