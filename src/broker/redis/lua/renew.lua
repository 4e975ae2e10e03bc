-- Renews the leases of entries that a worker runs, and of no others.
--
-- KEYS[1] lane   ARGV[1] worker   ARGV[2] idle time in ms that marks an entry as given back
-- ARGV[3…] entry IDs
--
-- Returns the IDs that are not in this worker's hands any more. Replay: renews once more.
local mine = {}
local start = '-'
-- The worker's own pending entries, in pages: claiming what has gone elsewhere would steal it back.
repeat
  local page = redis.call('XPENDING', KEYS[1], 'workers', start, '+', 512, ARGV[1])
  for _, entry in ipairs(page) do mine[entry[1]] = entry[3] < tonumber(ARGV[2]) end
  if #page == 512 then start = '(' .. page[512][1] end
until #page < 512
local ids, lost = {}, {}
for i = 3, #ARGV do
  if mine[ARGV[i]] then ids[#ids + 1] = ARGV[i] else lost[#lost + 1] = ARGV[i] end
end
if #ids > 0 then
  ids[#ids + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, unpack(ids))
end
return lost
