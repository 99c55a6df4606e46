-- Puts items at one end of a list, once: see moving.py.
-- KEYS: the list, the run's batches hash. ARGV: batch number, LPUSH or RPUSH, the items in the order of their pushes.
-- Returns the batch's record: the ordinals (1 is the first) of what was pushed, now or when it ran before.

local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then
  return known
end
local ordinals = {}
for i = 1, #ARGV - 2 do
  ordinals[i] = i
end
local record = table.concat(ordinals, ',')
redis.call('HSET', KEYS[2], ARGV[1], record)
redis.call('PERSIST', KEYS[2])
for i = 3, #ARGV do
  redis.call(ARGV[2], KEYS[1], ARGV[i])
end
return record
