-- Takes entries out of the unacked hash and its index, or puts them back, once: see unacked.py.
-- KEYS: unacked, unacked_index, the run's batches hash, the fleet's lock. ARGV: what the lock must hold
-- ("": is not looked at), batch number, take or restore, then for each entry its
-- delivery tag, its value and its score.
-- Returns the batch's record: the ordinals (1 is the first) of the entries that were taken or put back. An entry that is
-- no longer what was read is not taken; one whose tag is there is not put back. false where the lock is not the
-- caller's: nothing is done.

if ARGV[1] ~= '' and redis.call('GET', KEYS[4]) ~= ARGV[1] then
  return false
end
local known = redis.call('HGET', KEYS[3], ARGV[2])
if known then
  return known
end
local chosen = {}
for i = 1, (#ARGV - 3) / 3 do
  local now = redis.call('HGET', KEYS[1], ARGV[3 * i + 1])
  if (ARGV[3] == 'take' and now == ARGV[3 * i + 2]) or (ARGV[3] == 'restore' and not now) then
    chosen[#chosen + 1] = i
  end
end
local record = table.concat(chosen, ',')
redis.call('HSET', KEYS[3], ARGV[2], record)
redis.call('PERSIST', KEYS[3])
for _, i in ipairs(chosen) do
  if ARGV[3] == 'take' then
    redis.call('ZREM', KEYS[2], ARGV[3 * i + 1])
    redis.call('HDEL', KEYS[1], ARGV[3 * i + 1])
  else
    redis.call('ZADD', KEYS[2], ARGV[3 * i + 3], ARGV[3 * i + 1])
    redis.call('HSET', KEYS[1], ARGV[3 * i + 1], ARGV[3 * i + 2])
  end
end
return record
