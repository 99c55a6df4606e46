"""What a decision needs to have observed."""

from enum import Flag, auto


class Needs(Flag):
    """Parts of a look. EVERYTHING leaves out those that a judgement has to request by name.

    These are the probes, which run the operator's commands; what each node holds (HOLDINGS), which
    matters only if messages are unacknowledged; and what beat's scheduler keeps (SCHEDULE), which
    needs the application to be loaded.
    """

    FILES = auto()
    SERVICES = auto()
    IMPORTS = auto()
    QUEUES = auto()
    NODES = auto()
    BEAT = auto()
    PROBES = auto()
    HOLDINGS = auto()
    SCHEDULE = auto()
    EVERYTHING = FILES | SERVICES | IMPORTS | QUEUES | NODES | BEAT
