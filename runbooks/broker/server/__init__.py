"""The Redis server: the connection, all key names, the store with both, pipelining, the lock, and
the checks before a run.

It knows nothing of messages. It may import `core` alone.
"""
