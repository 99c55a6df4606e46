"""What has to be observed for a decision."""

from enum import Flag, auto


class Needs(Flag):
    """Parts of a look; the probes, which run the operator's commands, are asked for by name.

    So is what each node holds (HOLDINGS): a judgement asks for it only where messages are
    unacknowledged; and what beat's scheduler keeps (SCHEDULE), for which the application is loaded.
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
