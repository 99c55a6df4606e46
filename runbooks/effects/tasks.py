"""Running a task: the page that runs it sends it, follows it and writes it down."""

from runbooks.core.effects import RunTask
from runbooks.effects.base import Handler, Rank


class RunTaskHandler(Handler[RunTask]):
    """What has run cannot be un-run."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    service = ""
    stops = False
    starts = False
