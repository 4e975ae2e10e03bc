-- Begins anew the leases that seem to have begun this very moment. Where the server's clock was set back, they
-- began in what is the future then, and would last until it has come.
--
-- KEYS[1] lane   KEYS[2] load   ARGV[1] where to begin: `-`, or as this has returned   ARGV[2] most entries
--
-- Returns {where to go on, or '' at the end; how many were deleted while pending}.
-- Replay: begins them once more.
local page = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[1], '+', ARGV[2])
-- A lane without the group has none.
if page.err then return {'', 0} end
local of = {}
for _, entry in ipairs(page) do
  if entry[3] == 0 then
    of[entry[2]] = of[entry[2]] or {}
    table.insert(of[entry[2]], entry[1])
  end
end
local lost = 0
for worker, ids in pairs(of) do
  local asked = #ids
  ids[#ids + 1] = 'JUSTID'
  -- Pending and not in the lane: a stranger has deleted it.
  lost = lost + asked - #redis.call('XCLAIM', KEYS[1], 'workers', worker, 0, unpack(ids))
end
if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', lost) end
return {#page == tonumber(ARGV[2]) and '(' .. page[#page][1] or '', lost}
