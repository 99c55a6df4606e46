-- Removes exact items from a window of a list, once, and records which.
-- KEYS: the list, the run's batches hash. ARGV: batch number, first and last index of the window to search (from the
-- left), a tombstone that no item equals, then the bytes of each victim. Returns "1,3,…": the ordinals of those removed.

local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then
  return known
end

local wanted = {} -- bytes → the ordinals of the victims that have them, and how many of these are found
for i = 5, #ARGV do
  local same = wanted[ARGV[i]]
  if not same then
    same = {found = 0}
    wanted[ARGV[i]] = same
  end
  same[#same + 1] = i - 4
end

local ordinals, indexes = {}, {}
for i, item in ipairs(redis.call('LRANGE', KEYS[1], ARGV[2], ARGV[3])) do
  local same = wanted[item]
  if same and same.found < #same then
    same.found = same.found + 1
    ordinals[#ordinals + 1] = same[same.found]
    indexes[#indexes + 1] = ARGV[2] + i - 1
  end
end

-- The first write of the script: where Redis refuses writes (memory, disk, rights) it does so here, with nothing removed.
local result = table.concat(ordinals, ',')
redis.call('HSET', KEYS[2], ARGV[1], result)
redis.call('PERSIST', KEYS[2])
if #indexes > 0 then
  for _, index in ipairs(indexes) do
    redis.call('LSET', KEYS[1], index, ARGV[4])
  end
  -- From the nearer end: LREM walks the list.
  local nearer_right = indexes[1] * 2 > redis.call('LLEN', KEYS[1])
  redis.call('LREM', KEYS[1], nearer_right and -#indexes or #indexes, ARGV[4])
end
return result
