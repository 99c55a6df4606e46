"""What runs on workers, as an operator reads it."""

from runbooks.core.model import HostState, RunningTask, Snapshot
from runbooks.core.wording import span, utc


def told_of(node: str, snapshot: Snapshot, state: HostState) -> list[str]:
    """What runs on a node of this host, one line a task; nothing where it was not asked or does not answer."""
    found = snapshot.broker.nodes.get(node) if snapshot.broker else None
    return [told(task, state.clock_at) for task in found.running] if found else []


def told(task: RunningTask, now: float | None = None) -> str:
    """A running task: since when, for how long by its worker's clock `now`, and what becomes of it if it is killed."""
    since = "since nobody knows when" if task.started_at is None else f"since {utc(task.started_at)}"
    if task.started_at is not None and now is not None:
        since += f" ({span(now - task.started_at)})"
    lost, again = "early: killed, it is lost", "late: killed, it runs again after the visibility timeout"
    return f"runs {task.name} ({task.id}) {since}, acknowledged {lost if task.acknowledged else again}"
