"""What a step is: a desired state that can say, from what was observed, which changes are still missing."""

from collections.abc import Sequence
from enum import Flag, auto
from typing import Protocol

from runbooks.core.effects import Change
from runbooks.core.model import Snapshot


class Needs(Flag):
    """What has to be observed for a decision; the probes, which run the operator's commands, are asked for by name."""

    FILES = auto()
    SERVICES = auto()
    IMPORTS = auto()
    QUEUES = auto()
    NODES = auto()
    BEAT = auto()
    PROBES = auto()
    EVERYTHING = FILES | SERVICES | IMPORTS | QUEUES | NODES | BEAT


class Step(Protocol):
    """A desired state. It is reached when `plan` of a new look is empty; that is the only proof that counts.

    `rolling` says that its changes interrupt service, so that hosts are changed in batches.
    `patience_s` is how long the state may take to come about after the changes are made (workers start slowly).
    """

    name: str
    needs: Needs
    rolling: bool
    patience_s: float

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:
        """The changes still missing; empty when all is right. `earlier` are changes that will be made before."""
        ...
