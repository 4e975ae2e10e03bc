-- Forgets consumers of lanes that hold nothing, and how long their leases last.
--
-- KEYS[1] and on: lanes, and last the leases   ARGV[1] the one that leaves, or ''   ARGV[2] what the channels of workers begin with
-- ARGV[3…] names, which have read nothing for long, or leave
--
-- A live worker hears its channel. Its idle time tells nothing: servers before 7.2 let it run on through
-- blocking reads that bring nothing.
-- Returns how many names were forgotten. Replay: forgets nobody else. Deleting a consumer would drop
-- what it holds, so the look and the deletion are one step.
local lanes = {unpack(KEYS, 1, #KEYS - 1)}
local function stays(name)
  if name ~= ARGV[1] then
    local heard = redis.pcall('PUBSUB', 'NUMSUB', ARGV[2] .. name)
    if not heard.err and tonumber(heard[2]) > 0 then return true end
  end
  for _, lane in ipairs(lanes) do
    local held = redis.pcall('XPENDING', lane, 'workers', '-', '+', 1, name)
    if not held.err and #held > 0 then return true end
  end
  return false
end
local count = 0
for i = 3, #ARGV do
  if not stays(ARGV[i]) then
    count = count + 1
    -- A lane without the group has none to forget.
    for _, lane in ipairs(lanes) do redis.pcall('XGROUP', 'DELCONSUMER', lane, 'workers', ARGV[i]) end
    redis.call('HDEL', KEYS[#KEYS], ARGV[i])
  end
end
return count
