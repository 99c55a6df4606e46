"""The tasks that run on workers, as lines for the operator."""

from collections.abc import Iterable

from runbooks.core.model import HostState, RunningTask, Snapshot
from runbooks.core.wording import span, utc

_EARLY = "early: if killed, it is lost"
_LATE = "late: if killed, it runs again after the visibility timeout"


def running_on(names: Iterable[str], snapshot: Snapshot, state: HostState) -> list[str]:
    """Return a line for each task that runs on these nodes of a host.

    A node that was not asked, or does not answer, adds no line.
    """
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    lines = []
    for name in names:
        if name in nodes:
            lines += [task_line(task, state.clock_at) for task in nodes[name].running]
    return lines


def task_line(task: RunningTask, now: float | None = None) -> str:
    """Return the line of a running task: since when it runs, and what a kill does to it.

    `now` is the clock of its worker in epoch seconds; None leaves the duration out.
    """
    since = "since an unknown time"
    if task.started_at is not None:
        since = f"since {utc(task.started_at)}"
        if now is not None:
            since += f" ({span(now - task.started_at)})"
    acknowledged = _EARLY if task.acknowledged else _LATE
    return f"runs {task.name} ({task.id}) {since}, acknowledged {acknowledged}"
