-- Does one command where the fleet's lock is the caller's: see scripts.py.
-- KEYS: the lock, the command's key. ARGV: what the lock must hold ("": is not looked at), the command, its arguments.
-- Returns the command's answer; false where the lock is not the caller's: nothing is done.

if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end
return redis.call(ARGV[2], KEYS[2], unpack(ARGV, 3))
