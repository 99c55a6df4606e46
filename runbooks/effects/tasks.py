"""Run a task: the page `run_task` sends it, follows it and records it."""

from runbooks.core.effects import RunTask
from runbooks.effects.base import Handler, Rank


class RunTaskHandler(Handler[RunTask]):
    """A task that has run cannot be undone."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    service = ""
    stops = False
    starts = False
