"""What has to be observed for a decision."""

from enum import Flag, auto


class Needs(Flag):
    """Parts of a look; the probes, which run the operator's commands, are asked for by name."""

    FILES = auto()
    SERVICES = auto()
    IMPORTS = auto()
    QUEUES = auto()
    NODES = auto()
    BEAT = auto()
    PROBES = auto()
    EVERYTHING = FILES | SERVICES | IMPORTS | QUEUES | NODES | BEAT
