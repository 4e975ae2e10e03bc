-- What counts against a queue's limits. Not a script of its own: it stands before those that need it,
-- and reads neither KEYS[1] nor ARGV; what it needs is passed.
--
-- load_of(fields): the tenant and the bytes that an entry with these fields counts; nil where it
-- does not count.
-- load_of_parked(stored): likewise of a parked job.
-- count_in(load, bytes, tenant): counts a job.
-- give_back(load, bytes, tenants): takes bytes, and jobs by tenant, from the load hash. It comes last
-- in a script, and only for entries that this script has deleted.
--
-- Returns as above. Replay: the caller's, whose XDEL then returns 0.
local function load_of(fields)
  local job, parked, tenant
  for i = 1, #fields, 2 do
    if fields[i] == 'job' then
      job = job or fields[i + 1]
    elseif fields[i] == 'parked' then
      parked = parked or fields[i + 1]
    elseif fields[i] == 'load' then
      tenant = tenant or fields[i + 1]
    end
  end
  -- The mark is a tenant's name; anything else is a field of somebody's own.
  if not tenant or #tenant > 64 or not string.match(tenant, '^[%w_.@-]+$') then return nil end
  return tenant, #(job or parked or '')
end

-- A parked job is `LANE AT ATTEMPT[,FIELD=VALUE…] JOB`. Of one that cannot be read, whatever comes before
-- the job may tell the mark, and all of it counts for the bytes.
local function load_of_parked(stored)
  local more, job = string.match(stored, '^%S+ %S+ %d+(%S*) (.*)$')
  local tenant = string.match(more or string.match(stored, '^[^{]*'), ',load=([%w_.@-]+)')
  return tenant, tenant and #(job or stored)
end

local function count_in(load, bytes, tenant)
  redis.call('HINCRBY', load, 'jobs', 1)
  redis.call('HINCRBY', load, 'bytes', bytes)
  redis.call('HINCRBY', load, 't:' .. tenant, 1)
end

local function give_back(load, bytes, tenants)
  local all = 0
  for tenant, jobs in pairs(tenants) do
    all = all + jobs
    -- A tenant that holds nothing leaves nothing behind.
    if redis.call('HINCRBY', load, 't:' .. tenant, -jobs) <= 0 then
      redis.call('HDEL', load, 't:' .. tenant)
    end
  end
  if all == 0 then return end
  -- With the last job go the bytes that a recount could not tell, and none falls below nothing.
  if redis.call('HINCRBY', load, 'jobs', -all) <= 0 then
    redis.call('HSET', load, 'jobs', 0, 'bytes', 0)
  elseif redis.call('HINCRBY', load, 'bytes', string.format('%.0f', 0 - bytes)) < 0 then
    redis.call('HSET', load, 'bytes', 0)
  end
end

