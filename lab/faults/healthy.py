"""Calm states: a fleet that is well, in which nothing may be found."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import calm
from lab.faults.grounds import Ground


@calm("idle", "nothing waits, nothing runs")
@calm("idle under supervisord", "nothing waits, nothing runs", ground="supervisor")
@calm("idle in containers", "nothing waits, nothing runs", ground="docker")
@calm("idle hosts", "nothing waits, nothing runs", ground="fleet")
@contextmanager
def idle(ground: Ground) -> Iterator[None]:
    yield
