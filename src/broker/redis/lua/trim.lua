-- Removes the entries of a lane that lie before every unread and every pending one, and gives back
-- what they count.
--
-- KEYS[1] lane   KEYS[2] load
--
-- Returns how many were removed. Without a group, or with more than one, it does nothing: who has
-- read what is then unknown. Replay: removes nothing twice.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups ~= 1 then return 0 end
local group = {}
for i = 1, #groups[1], 2 do group[groups[1][i]] = groups[1][i + 1] end
local first
if group['pending'] > 0 then
  first = redis.call('XPENDING', KEYS[1], group['name'])[2]
else
  local ms, seq = string.match(group['last-delivered-id'], '^(%d+)-(%d+)$')
  if ms == '0' and seq == '0' then return 0 end
  -- One above the last delivered; a sequence within one millisecond stays far below 2^53.
  if seq == '18446744073709551615' then
    first = string.format('%.0f-0', tonumber(ms) + 1)
  else
    first = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
  end
end
-- Who only acknowledges gives nothing back.
local tenants, bytes, start = {}, 0, '-'
repeat
  local page = redis.call('XRANGE', KEYS[1], start, '(' .. first, 'COUNT', 64)
  for _, entry in ipairs(page) do
    local tenant, size = load_of(entry[2])
    if tenant then
      tenants[tenant] = (tenants[tenant] or 0) + 1
      bytes = bytes + size
    end
  end
  if #page == 64 then start = '(' .. page[64][1] end
until #page < 64
local removed = redis.call('XTRIM', KEYS[1], 'MINID', '=', first)
give_back(KEYS[2], bytes, tenants)
return removed
