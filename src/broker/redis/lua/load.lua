-- What counts against a queue's limits. Not a script of its own: it stands before those that need it,
-- and reads neither KEYS[1] nor ARGV; what it needs is passed.
--
-- load_of(fields): the tenant and the bytes that an entry with these fields counts; nil where it
-- does not count.
-- give_back(load, bytes, tenants): takes bytes, and jobs by tenant, from the load hash. It comes last
-- in a script, and only for entries that this script has deleted.
--
-- Returns as above. Replay: the caller's, whose XDEL then returns 0.
local function load_of(fields)
  local job, tenant
  for i = 1, #fields, 2 do
    if fields[i] == 'job' then
      job = job or fields[i + 1]
    elseif fields[i] == 'load' then
      tenant = tenant or fields[i + 1]
    end
  end
  -- The mark is a tenant's name; anything else is a field of somebody's own.
  if not tenant or #tenant > 64 or not string.match(tenant, '^[%w_.@-]+$') then return nil end
  return tenant, job and #job or 0
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
  for field, by in pairs({jobs = all, bytes = bytes}) do
    -- Counters that somebody has lost do not fall below nothing.
    if redis.call('HINCRBY', load, field, string.format('%.0f', 0 - by)) < 0 then
      redis.call('HSET', load, field, 0)
    end
  end
end

