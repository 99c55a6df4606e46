"""What a host is asked and what its answer means: pairs of pure functions.

It knows the protocol by which a script reaches a host, and the way to this machine; `ssh` knows the
others. It may import `core` alone.
"""
