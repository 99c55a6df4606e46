"""Faults of queues: what waits in them, and who takes it."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Sandbox


@fault("queue.malformed", "an item that is no message, in a queue whose worker is halted", touches="low_priority")
@contextmanager
def malformed(ground: Sandbox) -> Iterator[None]:
    with ground.broker() as client:
        client.lpush("low_priority", b"not a message")
        yield
        client.delete("low_priority")
