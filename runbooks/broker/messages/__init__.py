"""Reading a message as a worker would, without ever unpickling, and deciding whether a rule means
it.

It asks Redis for nothing. It may import `broker.server`'s names of keys, and `core`.
"""
