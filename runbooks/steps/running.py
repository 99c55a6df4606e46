"""What runs on workers, as an operator reads it."""

from runbooks.core.model import RunningTask
from runbooks.core.wording import span, utc


def told(task: RunningTask, now: float | None = None) -> str:
    """A running task: since when, for how long by its worker's clock `now`, and what becomes of it if it is killed."""
    since = "since nobody knows when" if task.started_at is None else f"since {utc(task.started_at)}"
    if task.started_at is not None and now is not None:
        since += f" ({span(now - task.started_at)})"
    fate = "acknowledged early: killed, it is lost" if task.acknowledged else "acknowledged late: killed, it runs again"
    return f"runs {task.name} ({task.id}) {since}, {fate}"
