"""The Redis server: connecting, the names of all keys, the store that holds both, sending ahead,
the lock, and what is refused beforehand.

It knows no message. It may import `core` alone.
"""
