-- Removes entries of a lane that lie before every unread and every pending one, and gives back what
-- they count: so many as are read in a few milliseconds.
--
-- KEYS[1] lane   KEYS[2] load   ARGV[1] most entries   ARGV[2] most bytes; it stops a little above
--
-- Returns {how many were removed, 1 where there are more}. Without a group, or with more than one, it
-- does nothing: who has read what is then unknown. Replay: removes nothing twice.
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0} end
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups ~= 1 then return {0, 0} end
local group = {}
for i = 1, #groups[1], 2 do group[groups[1][i]] = groups[1][i + 1] end
local last
if group['pending'] > 0 then
  last = '(' .. redis.call('XPENDING', KEYS[1], group['name'])[2]
else
  last = group['last-delivered-id']
  if last == '0-0' then return {0, 0} end
end
-- Who only acknowledges gives nothing back.
local ids, tenants, bytes, weight = {}, {}, 0, 0
local start, more = '-', 0
while true do
  local page = redis.call('XRANGE', KEYS[1], start, last, 'COUNT', 4)
  for _, entry in ipairs(page) do
    local tenant, size = load_of(entry[2])
    if tenant then
      tenants[tenant] = (tenants[tenant] or 0) + 1
      bytes = bytes + size
    end
    for _, part in ipairs(entry[2]) do weight = weight + #part end
    ids[#ids + 1] = entry[1]
  end
  if #page < 4 then break end
  start = '(' .. page[4][1]
  if #ids >= tonumber(ARGV[1]) or weight >= tonumber(ARGV[2]) then
    more = 1
    break
  end
end
if #ids == 0 then return {0, 0} end
local removed = redis.call('XDEL', KEYS[1], unpack(ids))
give_back(KEYS[2], bytes, tenants)
return {removed, more}
