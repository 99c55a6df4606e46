"""The Redis server: connecting, the names of all keys, sending ahead, the lock, and what is refused beforehand.

It knows no message. It may import `core` alone.
"""
