-- Tells a partition's workers when the first parked job is due. Not a script of its own: it stands
-- before those that need it, and reads neither KEYS[1] nor ARGV; what it needs is passed.
--
-- tell_next(parked, wake): publishes `next MS WORKERS`: in how many ms the first job is due, or `-`
-- where none is parked, and how many hear it, or 0 where the server does not say.
--
-- Returns the ms, or -1. Replay: tells it again, as it then is.
local function tell_next(parked, wake)
  local first, due = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES'), -1
  if first[2] then
    local t = redis.call('TIME')
    due = math.max(0, tonumber(first[2]) - t[1] * 1000 - math.floor(t[2] / 1000))
  end
  local heard = redis.pcall('PUBSUB', 'NUMSUB', wake)
  local text = due < 0 and '-' or string.format('%.0f', due)
  redis.pcall('PUBLISH', wake, 'next ' .. text .. ' ' .. (heard[2] or 0))
  return due
end

