-- Puts items at one end of a list, once: see requeue.py.
-- KEYS: the list, the run's batches hash, the fleet's lock. ARGV: what the lock must hold ("": is not looked at), batch
-- number, LPUSH or RPUSH, the items in the order of their pushes.
-- Returns the batch's record: the ordinals (1 is the first) of what was pushed, now or when it ran before. false where
-- the lock is not the caller's: nothing is done.

if ARGV[1] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return false
end
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known then
  return known
end
local ordinals = {}
for i = 1, #ARGV - 3 do
  ordinals[i] = i
end
local record = table.concat(ordinals, ',')
redis.call('HSET', KEYS[2], ARGV[2], record)
redis.call('PERSIST', KEYS[2])
for i = 4, #ARGV do
  redis.call(ARGV[3], KEYS[1], ARGV[i])
end
return record
