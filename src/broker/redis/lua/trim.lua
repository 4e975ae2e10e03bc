-- Removes the entries of a lane that lie before every unread and every pending one.
--
-- KEYS[1] lane
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
return redis.call('XTRIM', KEYS[1], 'MINID', '=', first)
