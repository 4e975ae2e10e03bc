-- A page of a tenant's recent jobs, the newest first.
--
-- KEYS[1] recent jobs   ARGV[1] the job that the page follows, or ''   ARGV[2] most jobs, from 1
--
-- Returns their IDs, or nil where that job is not among them. Replay: reads again.
local at = -1
if ARGV[1] ~= '' then
  at = redis.call('ZREVRANK', KEYS[1], ARGV[1])
  if not at then return false end
end
return redis.call('ZREVRANGE', KEYS[1], at + 1, at + ARGV[2])
