"""Questions to hosts and the parsers of their answers: pairs of pure functions.

It has the protocol by which a script reaches a host, and the transport to this machine; `ssh` has
the other transport. It may import `core` alone.
"""
