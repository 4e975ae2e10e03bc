-- Ends a worker's lease of an entry, which keeps its place: the next sweep takes it.
--
-- KEYS[1] lane   ARGV[1] worker   ARGV[2] entry ID   ARGV[3] idle time in ms that marks it as given
-- back   ARGV[4] wake channel
-- ARGV[5] the latest time, in ms, that this server's clock can have shown as the call was made, or 0
--
-- Returns 1 when the entry was this worker's, else 0. Replay: changes nothing more. A first sending that comes
-- behind its own replay, when the same worker has taken the entry again, changes nothing: the entry was
-- taken, or renewed, after the call was made.
local mine = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[2], ARGV[2], 1, ARGV[1])
if mine.err then
  -- Without the lane, or its group, it is nobody's.
  if string.find(mine.err, 'NOGROUP', 1, true) then return 0 end
  return redis.error_reply(mine.err)
end
mine = mine[1]
if not mine then return 0 end
local latest = tonumber(ARGV[5])
if latest > 0 then
  local t = redis.call('TIME')
  if t[1] * 1000 + t[2] / 1000 - mine[3] > latest then return 0 end
end
redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, ARGV[2],
  'IDLE', ARGV[3], 'RETRYCOUNT', 0, 'JUSTID')
redis.pcall('PUBLISH', ARGV[4], 'released')
return 1
