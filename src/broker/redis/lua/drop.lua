-- Drops dead letters while there are more than may be kept, and counts them.
--
-- KEYS[1] dead letters   KEYS[2] load   ARGV[1] most dead letters   ARGV[2…] names of letters that may go,
-- oldest first
--
-- Returns how many were dropped. Replay: drops none below the most, and counts nothing twice.
local over, dropped = redis.call('XLEN', KEYS[1]) - ARGV[1], 0
for i = 2, #ARGV do
  if dropped >= over then break end
  dropped = dropped + redis.call('XDEL', KEYS[1], ARGV[i])
end
if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', dropped) end
return dropped
