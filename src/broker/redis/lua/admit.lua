-- Adds jobs to their lanes, or parks them, as far as the queue's bounds allow. Each job is decided
-- by itself, in order.
--
-- KEYS[1] high   KEYS[2] normal   KEYS[3] low   KEYS[4] parked   KEYS[5] parked jobs   KEYS[6] load
-- ARGV[1] wake channel   ARGV[2] the time, ms since the epoch
-- ARGV[3] most jobs   ARGV[4] most bytes   ARGV[5] most jobs of a tenant; 0 for any number
-- ARGV[6] `1`: behind a job that is refused, every other is
-- ARGV[7…] runs of jobs that have all this in common: how many, lane, tenant, due in ms since the
-- epoch or 0 for the lane; then of each its ID and the job
--
-- Returns for each job its entry's ID or `parked`, or the bound that it has met and how much there
-- was: `jobs N`, `bytes N`, `tenant N`, or `behind` another that was refused.
-- Replay: adds the entries once more, as a repeated XADD does, and counts them; what is parked
-- already stays as it is and is not counted again.
local call, lanes = redis.call, {high = KEYS[1], normal = KEYS[2], low = KEYS[3]}
local at, load = ARGV[2], KEYS[6]
local most_jobs, most_bytes, most_of_tenant = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local in_order = ARGV[6] == '1'
local held = call('HMGET', load, 'jobs', 'bytes')
local jobs, bytes = tonumber(held[1]) or 0, tonumber(held[2]) or 0
local tenants, parked, refused = {}, {}, false

local function met(of_tenant, size)
  if most_jobs > 0 and jobs >= most_jobs then return 'jobs', jobs end
  if most_bytes > 0 and bytes + size > most_bytes then return 'bytes', bytes end
  if most_of_tenant > 0 and of_tenant >= most_of_tenant then return 'tenant', of_tenant end
end

local function take(lane, tenant, due, id, job)
  if due ~= '0' and call('HEXISTS', KEYS[5], id) == 1 then return 'parked' end
  if refused and in_order then return 'behind' end
  local bound, count = met(tenants[tenant], #job)
  if bound then
    refused = true
    return bound .. ' ' .. string.format('%.0f', count)
  end
  jobs, bytes, tenants[tenant] = jobs + 1, bytes + #job, tenants[tenant] + 1
  if due == '0' then
    return call('XADD', lanes[lane], '*', 'job', job, 'id', id, 'at', at, 'load', tenant)
  end
  call('HSET', KEYS[5], id, lane .. ' ' .. at .. ' 0,load=' .. tenant .. ' ' .. job)
  call('ZADD', KEYS[4], due, id)
  parked[id] = true
  return 'parked'
end

local replies, before, i = {}, jobs, 7
while i < #ARGV do
  local last, lane, tenant, due = i + 2 + 2 * ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  tenants[tenant] = tenants[tenant] or tonumber(call('HGET', load, 't:' .. tenant)) or 0
  for j = i + 4, last, 2 do
    replies[#replies + 1] = take(lane, tenant, due, ARGV[j], ARGV[j + 1])
  end
  i = last + 2
end
if jobs > before then
  call('HSET', load, 'jobs', string.format('%.0f', jobs), 'bytes', string.format('%.0f', bytes))
  for tenant, count in pairs(tenants) do
    if count > 0 then call('HSET', load, 't:' .. tenant, count) end
  end
end
if next(parked) and parked[redis.call('ZRANGE', KEYS[4], 0, 0)[1]] then
  -- Workers of an earlier version know no other word; the others hear in a moment when it is due.
  redis.pcall('PUBLISH', ARGV[1], 'parked')
  tell_next(KEYS[4], ARGV[1])
end
return replies
