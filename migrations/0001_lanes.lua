-- breaking: no
-- Creates a partition's lanes, each with its one consumer group, which reads from the beginning:
-- what a producer in another language added before there was a group is delivered too.
--
-- KEYS[1] high   KEYS[2] normal   KEYS[3] low   KEYS[4] parked   KEYS[5] parked jobs
-- KEYS[6] dead letters
--
-- Returns how many groups were created. Replay: what is there stays.
local created = 0
for i = 1, 3 do
  local answer = redis.pcall('XGROUP', 'CREATE', KEYS[i], 'workers', '0', 'MKSTREAM')
  if not answer.err then
    created = created + 1
  elseif not string.find(answer.err, 'BUSYGROUP', 1, true) then
    return redis.error_reply(answer.err)
  end
end
return created
