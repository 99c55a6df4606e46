"""Reads messages as a worker would, without ever unpickling, and decides which ones a rule selects.

It asks Redis for nothing. It may import the key names of `broker.server`, and `core`.
"""
