-- Takes entries whose lease has run out.
--
-- KEYS[1] lane   KEYS[2] load
-- ARGV[1] worker   ARGV[2] idle time in ms that ends a lease   ARGV[3] most
-- ARGV[4] deliveries from which an entry is suspect   ARGV[5…] entry IDs
--
-- Returns {entries, deliveries and idle times before, how many were deleted while pending}.
-- A suspect is taken alone: reading it may be what ends its workers, and
-- the others are not to share its fate.
-- Replay: takes nothing twice, for the lease begins anew.
local taken, before, lost = {}, {}, 0
for i = 5, #ARGV do
  local id = ARGV[i]
  local p = redis.call('XPENDING', KEYS[1], 'workers', 'IDLE', ARGV[2], id, id, 1)[1]
  local suspect = p and p[4] >= tonumber(ARGV[4])
  if suspect and #taken > 0 then break end
  if p and #taken < tonumber(ARGV[3]) then
    local entry = redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], ARGV[2], id)[1]
    if entry then
      taken[#taken + 1] = entry
      before[#before + 1] = {p[4], p[3]}
    else
      -- Pending and not in the lane: a stranger has deleted it.
      redis.call('XACK', KEYS[1], 'workers', id)
      lost = lost + 1
    end
    if suspect then break end
  end
end
if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', lost) end
return {taken, before, lost}
