-- Takes entries whose lease has run out: the sweeper's, and that of the worker that holds it.
--
-- KEYS[1] lane   KEYS[2] load   KEYS[3] leases
-- ARGV[1] worker   ARGV[2] idle time in ms that ends a lease   ARGV[3] most
-- ARGV[4] deliveries from which an entry is suspect   ARGV[5] most bytes; it stops a little above
-- ARGV[6] `1` where the worker has taken others just before
-- ARGV[7] the latest time that this server's clock can show, in ms, unless it was set; 0 for none
-- ARGV[8…] entry IDs
--
-- Returns {entries, deliveries and idle times before, how many were deleted while pending, how many of
-- the IDs are dealt with, the number of this taking or 0}; the others are to be given again. Beyond that time it takes nothing, and gives
-- {{}, {}, its time in µs, -1, 0}: idle times may be too long by what the clock was set forward.
-- A suspect is taken alone: reading it may be what ends its workers, and
-- the others are not to share its fate.
-- Replay: takes nothing twice, for the lease begins anew.
local taken, before, lost, bytes, done = {}, {}, 0, 0, 0
local t = redis.call('TIME')
local latest = tonumber(ARGV[7])
if latest > 0 and t[1] * 1000 + t[2] / 1000 > latest then
  return {taken, before, t[1] * 1000000 + t[2], -1, '0'}
end
-- A worker may have a longer lease than the one that sweeps, as in a rollout that changes it.
local function is_over(pending)
  local lease = redis.call('HGET', KEYS[3], pending[2])
  return pending[3] >= (tonumber(lease or 0) or 0)
end
local all = #ARGV - 7
for i = 8, #ARGV do
  if #taken >= tonumber(ARGV[3]) then break end
  local id = ARGV[i]
  local p = redis.call('XPENDING', KEYS[1], 'workers', 'IDLE', ARGV[2], id, id, 1)[1]
  if p and not is_over(p) then p = nil end
  local suspect = p and p[4] >= tonumber(ARGV[4])
  if suspect and (#taken > 0 or ARGV[6] == '1') then done = all break end
  if p then
    local entry = redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], ARGV[2], id)[1]
    if entry then
      taken[#taken + 1] = entry
      before[#before + 1] = {p[4], p[3]}
      for _, part in ipairs(entry[2]) do bytes = bytes + #part end
    else
      -- Pending and not in the lane: a stranger has deleted it.
      redis.call('XACK', KEYS[1], 'workers', id)
      lost = lost + 1
    end
    if suspect then done = all break end
  end
  done = i - 7
  if bytes >= tonumber(ARGV[5]) then break end
end
if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', lost) end
return {taken, before, lost, done, #taken > 0 and next_taking(KEYS[2]) or '0'}
