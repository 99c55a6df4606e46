"""Estimate how long a stop of a worker may take."""

from collections.abc import Iterator, Sequence

from runbooks.core.fleet import FleetHost
from runbooks.core.model import RunningTask


def stop_may_take(host: FleetHost, running: Sequence[RunningTask], now: float) -> tuple[float, str]:
    """Return the longest time that is known, in seconds, and how it is known; 0 if none is.

    `running` are the tasks of the worker. A default of ours says nothing about the tasks.
    """
    return max(_known(host, running, now), default=(0.0, ""))


def _known(
    host: FleetHost, running: Sequence[RunningTask], now: float
) -> Iterator[tuple[float, str]]:
    if "stop_timeout" in host.settings.model_fields_set:
        yield host.settings.stop_timeout, "celery_stop_timeout"
    for task in running:
        if task.started_at is not None:
            yield now - task.started_at, "a task there has been running that long"
