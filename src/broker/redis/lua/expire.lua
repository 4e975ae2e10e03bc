-- Drops dead letters that have outlived their time.
--
-- KEYS[1] dead letters   KEYS[2] load   ARGV[1] how long they are kept, in ms
--
-- Returns how many were dropped. Replay: drops, and counts, what has outlived its time since.
local t = redis.call('TIME')
local dropped = redis.call('XTRIM', KEYS[1], 'MINID', '=',
  string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000) - ARGV[1]))
if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', dropped) end
return dropped
