-- Adds jobs to their lanes, or parks them, as far as the queue's bounds allow. Each job is decided
-- by itself, in order.
--
-- KEYS[1] high   KEYS[2] normal   KEYS[3] low   KEYS[4] parked   KEYS[5] parked jobs   KEYS[6] load
-- ARGV[1] wake channel   ARGV[2] the time, ms since the epoch
-- ARGV[3] most jobs   ARGV[4] most bytes   ARGV[5] most jobs of a tenant; 0 for any number
-- ARGV[6] `1`: behind a job that is refused, every other is
-- ARGV[7…] lane, job ID, tenant, due in ms since the epoch or 0 for a lane, job, …
--
-- Returns for each job its entry's ID or `parked`, or the bound that it has met and how much there
-- was: `jobs N`, `bytes N`, `tenant N`, or `behind` another that was refused.
-- Replay: adds the entries once more, as a repeated XADD does, and counts them; what is parked
-- already stays as it is and is not counted again.
local lanes = {high = KEYS[1], normal = KEYS[2], low = KEYS[3]}
local at, load = ARGV[2], KEYS[6]
local most_jobs, most_bytes, most_of_tenant = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local in_order = ARGV[6] == '1'
local held = redis.call('HMGET', load, 'jobs', 'bytes')
local jobs, bytes = tonumber(held[1]) or 0, tonumber(held[2]) or 0
local tenants, changed = {}, {}

local function met(tenant, size)
  if most_jobs > 0 and jobs >= most_jobs then return 'jobs', jobs end
  if most_bytes > 0 and bytes + size > most_bytes then return 'bytes', bytes end
  if not tenants[tenant] then
    tenants[tenant] = tonumber(redis.call('HGET', load, 't:' .. tenant)) or 0
  end
  if most_of_tenant > 0 and tenants[tenant] >= most_of_tenant then
    return 'tenant', tenants[tenant]
  end
end

local replies, parked, refused = {}, false, false
for i = 7, #ARGV, 5 do
  local id, tenant, due, job = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local reply, bound, count
  if due ~= '0' and redis.call('HEXISTS', KEYS[5], id) == 1 then
    reply = 'parked'
  elseif refused and in_order then
    reply = 'behind'
  else
    bound, count = met(tenant, #job)
    if bound then
      refused = true
      reply = bound .. ' ' .. string.format('%.0f', count)
    elseif due ~= '0' then
      redis.call('HSET', KEYS[5], id, ARGV[i] .. ' ' .. at .. ' 0,load=' .. tenant .. ' ' .. job)
      redis.call('ZADD', KEYS[4], due, id)
      reply, parked = 'parked', true
    else
      reply = redis.call('XADD', lanes[ARGV[i]], '*',
        'job', job, 'id', id, 'at', at, 'attempt', '0', 'load', tenant)
    end
    if not bound then
      jobs, bytes, tenants[tenant] = jobs + 1, bytes + #job, tenants[tenant] + 1
      changed[tenant] = true
    end
  end
  replies[#replies + 1] = reply
end

if next(changed) then
  redis.call('HSET', load, 'jobs', string.format('%.0f', jobs), 'bytes', string.format('%.0f', bytes))
  for tenant in pairs(changed) do redis.call('HSET', load, 't:' .. tenant, tenants[tenant]) end
end
if parked then redis.pcall('PUBLISH', ARGV[1], 'parked') end
return replies
