"""What runs on workers, as an operator reads it."""

from collections.abc import Iterable

from runbooks.core.model import HostState, RunningTask, Snapshot
from runbooks.core.wording import span, utc


def told_of(names: Iterable[str], snapshot: Snapshot, state: HostState) -> list[str]:
    """What runs on nodes of this host, one line a task; nothing of one that was not asked or does
    not answer.
    """
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    return [
        told(task, state.clock_at)
        for name in names
        if name in nodes
        for task in nodes[name].running
    ]


def told(task: RunningTask, now: float | None = None) -> str:
    """A running task: since when, for how long by its worker's clock `now`, and what becomes of it
    if it is killed.
    """
    since = (
        "since nobody knows when" if task.started_at is None else f"since {utc(task.started_at)}"
    )
    if task.started_at is not None and now is not None:
        since += f" ({span(now - task.started_at)})"
    lost, again = (
        "early: killed, it is lost",
        "late: killed, it runs again after the visibility timeout",
    )
    return (
        f"runs {task.name} ({task.id}) {since}, acknowledged {lost if task.acknowledged else again}"
    )
