-- Counts what a partition really holds, a part at a time, and sets its counters right at the end.
--
-- KEYS[1] high   KEYS[2] normal   KEYS[3] low   KEYS[4] parked   KEYS[5] parked jobs   KEYS[6] load
-- ARGV[1] `look`: answer `right` unless more jobs are counted than there are entries and parked jobs, or
--   anything is counted where there are none
--   `count`: no more than that   `set`: at the end, set the counters right if nothing has moved
--   `settle`: likewise, as far as what has moved allows
-- ARGV[2] most entries and parked jobs to read   ARGV[3] most bytes of them; it stops a little above
-- ARGV[4] … ARGV[6] the entry of each lane that was read last, or ''
-- ARGV[7] the parked job that was read last and its time, `TIME ID`, or ''
-- ARGV[8] read so far: entries and parked jobs   ARGV[9] those that count   ARGV[10] their bytes
-- ARGV[11] bytes of the largest   ARGV[12…] tenant, jobs so far, …: at `set`, whose counters to look at
--
-- Returns {word, {read last, as ARGV[4…7]}, {ARGV[8…11], with this part}, {{tenant, jobs in this part}, …}}
--   right   nothing is to be done          more    there is more to read
--   end     all is read                    moved   what is held has changed meanwhile: count anew
--   set     the counters are right; then, in the third place, {jobs, bytes, tenants}: by how much the
--           two counters were too low, and how many tenants' counters were wrong
-- Replay: reads again; nothing more is found to correct.
local word, most, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local load, last = KEYS[6], {ARGV[4], ARGV[5], ARGV[6], ARGV[7]}
local seen, jobs, bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local largest, tenants, read, weight = tonumber(ARGV[11]), {}, 0, 0

local function held()
  local all = redis.call('ZCARD', KEYS[4])
  for lane = 1, 3 do all = all + redis.call('XLEN', KEYS[lane]) end
  return all
end
local function answer(said)
  local list = {}
  for tenant, count in pairs(tenants) do list[#list + 1] = {tenant, count} end
  return {said, last, {seen, jobs, bytes, largest}, list}
end
local function count(tenant, size, all)
  read, seen, weight = read + 1, seen + 1, weight + all
  if not tenant then return end
  jobs, bytes, largest = jobs + 1, bytes + size, math.max(largest, size)
  tenants[tenant] = (tenants[tenant] or 0) + 1
end
local function is_enough() return read >= most or weight >= most_bytes end

if word == 'look' then
  local own = redis.call('HMGET', load, 'jobs', 'bytes')
  local counted, all = tonumber(own[1]) or 0, held()
  local function has_tenants()
    return #redis.call('HSCAN', load, 0, 'MATCH', 't:*', 'COUNT', 1000)[2] > 0
  end
  local of_nobody = all == 0 and ((tonumber(own[2]) or 0) > 0 or has_tenants())
  -- Entries without a mark are as good as any: what counts is a part of what is held.
  if counted <= all and not of_nobody then return answer('right') end
end
-- Few at a time, for they may be large.
for lane = 1, 3 do
  while true do
    local start = last[lane] == '' and '-' or '(' .. last[lane]
    local page = redis.call('XRANGE', KEYS[lane], start, '+', 'COUNT', 4)
    for _, entry in ipairs(page) do
      local tenant, size = load_of(entry[2])
      local all = 0
      for _, part in ipairs(entry[2]) do all = all + #part end
      count(tenant, size, all)
      last[lane] = entry[1]
    end
    if is_enough() then return answer('more') end
    if #page < 4 then break end
  end
end
local rank = 0
if last[4] ~= '' then
  local time, id = string.match(last[4], '^(%S+) (.*)$')
  rank = redis.call('ZRANK', KEYS[4], id)
  -- Moved on meanwhile: those of its time are read again.
  rank = rank and rank + 1 or redis.call('ZCOUNT', KEYS[4], '-inf', '(' .. time)
end
while true do
  local page = redis.call('ZRANGE', KEYS[4], rank, rank, 'WITHSCORES')
  if #page == 0 then break end
  local stored = redis.call('HGET', KEYS[5], page[1]) or ''
  local tenant, size = load_of_parked(stored)
  count(tenant, size, #stored)
  last[4], rank = page[2] .. ' ' .. page[1], rank + 1
  if is_enough() then return answer('more') end
end
if word ~= 'set' and word ~= 'settle' then return answer('end') end

-- What was read and has gone, or has gone elsewhere, is known by its number alone. Where all of it has
-- gone, nothing counts.
local all = held()
local moved = math.abs(seen - all)
if all == 0 then jobs, bytes, moved = 0, 0, 0 end
if moved > 0 and word == 'set' then return answer('moved') end
local wrong = 0
local function set(field, real, slack)
  local was = tonumber(redis.call('HGET', load, field))
  local right = math.min(math.max(was or 0, real - slack, 0), real + slack)
  if right == was or (right == 0 and not was) then return 0 end
  wrong = wrong + 1
  if right == 0 and string.sub(field, 1, 2) == 't:' then
    redis.call('HDEL', load, field)
  else
    redis.call('HSET', load, field, string.format('%.0f', right))
  end
  return right - (was or 0)
end
local more_jobs, more_bytes = set('jobs', jobs, moved), set('bytes', bytes, moved * largest)
local before = wrong
for i = 12, #ARGV, 2 do
  local of_tenant = tonumber(ARGV[i + 1]) + (tenants[ARGV[i]] or 0)
  set('t:' .. ARGV[i], all > 0 and of_tenant or 0, moved)
end
if wrong > 0 then redis.call('HINCRBY', load, 'corrected', wrong) end
return {'set', last, {more_jobs, more_bytes, wrong - before}, {}}
