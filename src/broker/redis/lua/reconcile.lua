-- Counts what a partition really holds, and sets its counters right.
--
-- KEYS[1] high   KEYS[2] normal   KEYS[3] low   KEYS[4] parked   KEYS[5] parked jobs   KEYS[6] load
-- ARGV[1] `1`: only where more jobs are counted than there are entries and parked jobs
--
-- Returns {jobs, bytes, tenants}: by how much the two counters were too low, and how many tenants'
-- counters were wrong. It reads every job that is held, which takes the server's time.
-- Replay: finds nothing more to correct.
local load, real, sum = KEYS[6], {}, {jobs = 0, bytes = 0}
if ARGV[1] == '1' then
  local counted = tonumber(redis.call('HGET', load, 'jobs')) or 0
  if counted == 0 then return {0, 0, 0} end
  local held = redis.call('ZCARD', KEYS[4])
  for lane = 1, 3 do held = held + redis.call('XLEN', KEYS[lane]) end
  -- Entries without a mark are as good as any: what counts is a part of what is held.
  if counted <= held then return {0, 0, 0} end
end
local function count(tenant, size)
  real['t:' .. tenant] = (real['t:' .. tenant] or 0) + 1
  sum.jobs, sum.bytes = sum.jobs + 1, sum.bytes + size
end
for lane = 1, 3 do
  local start = '-'
  repeat
    local page = redis.call('XRANGE', KEYS[lane], start, '+', 'COUNT', 64)
    for _, entry in ipairs(page) do
      local tenant, size = load_of(entry[2])
      if tenant then count(tenant, size) end
    end
    if #page == 64 then start = '(' .. page[64][1] end
  until #page < 64
end
local rank = 0
repeat
  local page = redis.call('ZRANGE', KEYS[4], rank, rank + 63)
  for _, id in ipairs(page) do
    local stored = redis.call('HGET', KEYS[5], id)
    local tenant, job = string.match(stored or '', '^%S+ %S+ %d+%S*,load=([^%s,]+)%S* (.*)$')
    if tenant then count(tenant, #job) end
  end
  rank = rank + 64
until #page < 64

real.jobs, real.bytes = sum.jobs, sum.bytes
local wrong, tenants, was = 0, 0, {}
local held = redis.call('HGETALL', load)
for i = 1, #held, 2 do
  local field = held[i]
  was[field] = held[i + 1]
  if string.sub(field, 1, 2) == 't:' and not real[field] then
    redis.call('HDEL', load, field)
    wrong, tenants = wrong + 1, tenants + 1
  end
end
for field, number in pairs(real) do
  local text = string.format('%.0f', number)
  if (was[field] or '0') ~= text then
    redis.call('HSET', load, field, text)
    wrong = wrong + 1
    if string.sub(field, 1, 2) == 't:' then tenants = tenants + 1 end
  end
end
if wrong > 0 then redis.call('HINCRBY', load, 'corrected', wrong) end
return {sum.jobs - (tonumber(was.jobs) or 0), sum.bytes - (tonumber(was.bytes) or 0), tenants}
