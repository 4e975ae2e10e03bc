-- Ends counted entries whose jobs are over, and gives back what they count.
--
-- KEYS[1] lane   KEYS[2] load
-- ARGV entry ID, tenant, bytes, … of at most 1,000 entries
--
-- Returns how many were there. Replay: an entry that is gone gives nothing back.
local ids, tenants, bytes, there = {}, {}, 0, 0
for i = 1, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    there = there + 1
    tenants[ARGV[i + 1]] = (tenants[ARGV[i + 1]] or 0) + 1
    bytes = bytes + tonumber(ARGV[i + 2])
  end
end
redis.call('XACK', KEYS[1], 'workers', unpack(ids))
give_back(KEYS[2], bytes, tenants)
return there
