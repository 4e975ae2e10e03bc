-- Numbers of takings. Not a script of its own: it stands before those that need it, and reads neither
-- KEYS[1] nor ARGV; what it needs is passed.
--
-- next_taking(load): a number above all that were given in this partition before, as text: the server's
-- time in µs, or more than the last. Neither a clock that steps back nor a hash that was forgotten
-- makes it fall. There is room between two for the attempts that one worker asks for.
--
-- Returns as above. Replay: gives another number, which is as good.
local function next_taking(load)
  local t = redis.call('TIME')
  local last = tonumber(redis.call('HGET', load, 'taking')) or 0
  local taking = string.format('%.0f', math.max(last + 1000, t[1] * 1000000 + t[2]))
  redis.call('HSET', load, 'taking', taking)
  return taking
end
