-- Renews the leases of entries that a worker runs, and of no others.
--
-- KEYS[1] lane   KEYS[2] load   ARGV[1] worker
-- ARGV[2] idle time in ms that marks an entry as given back   ARGV[3…] entry IDs, from the first to the last
--
-- Returns {IDs that are not in this worker's hands any more, how many were deleted under it}. Where the
-- lane or its group is gone, nothing is in anybody's hands.
-- Replay: renews once more.
local mine = {}
local start, last = ARGV[3], ARGV[#ARGV]
-- The worker's own pending entries between them, in pages: claiming what has gone elsewhere would steal it
-- back.
repeat
  local page = redis.pcall('XPENDING', KEYS[1], 'workers', start, last, 512, ARGV[1])
  if page.err then
    if not string.find(page.err, 'NOGROUP', 1, true) then return redis.error_reply(page.err) end
    page = {}
  end
  for _, entry in ipairs(page) do mine[entry[1]] = entry[3] < tonumber(ARGV[2]) end
  if #page == 512 then start = '(' .. page[512][1] end
until #page < 512
local ids, gone = {}, {}
for i = 3, #ARGV do
  if mine[ARGV[i]] then ids[#ids + 1] = ARGV[i] else gone[#gone + 1] = ARGV[i] end
end
local deleted = 0
if #ids > 0 then
  local asked = #ids
  -- One delivery: a worker that renews has read the entry and lives.
  for _, word in ipairs({'RETRYCOUNT', 1, 'JUSTID'}) do ids[#ids + 1] = word end
  deleted = asked - #redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, unpack(ids))
  -- What is pending and not in the lane was deleted by a stranger: XCLAIM drops it.
  if deleted > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', deleted) end
end
return {gone, deleted}
