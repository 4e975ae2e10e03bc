-- Forgets consumers of lanes that hold nothing.
--
-- KEYS[1] and on: lanes   ARGV[1] the one that leaves, or ''   ARGV[2] for all others: idle time in ms
-- ARGV[3] what the channels of workers begin with
--
-- A live worker hears its channel. Its idle time tells nothing: servers before 7.2 let it run on through
-- blocking reads that bring nothing.
-- Returns how many names were forgotten. Replay: forgets nobody twice. Deleting a consumer would drop
-- what it holds, so the look and the deletion are one step.
local gone = {}
local count = 0
local function lives(name)
  local heard = redis.pcall('PUBSUB', 'NUMSUB', ARGV[3] .. name)
  return not heard.err and tonumber(heard[2]) > 0
end
for _, lane in ipairs(KEYS) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', lane, 'workers')
  for _, fields in ipairs(consumers.err and {} or consumers) do
    local consumer = {}
    for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
    local name = consumer['name']
    if consumer['pending'] == 0 and (name == ARGV[1]
        or consumer['idle'] > tonumber(ARGV[2]) and not lives(name)) then
      redis.call('XGROUP', 'DELCONSUMER', lane, 'workers', name)
      if not gone[name] then count = count + 1 end
      gone[name] = true
    end
  end
end
return count
