-- Ends a worker's lease of an entry, which keeps its place: the next sweep takes it.
--
-- KEYS[1] lane   ARGV[1] worker   ARGV[2] entry ID   ARGV[3] idle time in ms that marks it as given
-- back   ARGV[4] wake channel
--
-- Returns 1 when the entry was this worker's, else 0. Replay: changes nothing more.
local mine = redis.call('XPENDING', KEYS[1], 'workers', ARGV[2], ARGV[2], 1, ARGV[1])
if #mine == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, ARGV[2],
  'IDLE', ARGV[3], 'RETRYCOUNT', 0, 'JUSTID')
redis.pcall('PUBLISH', ARGV[4], 'released')
return 1
