"""Show a view once, or with --watch again and again until ^C."""

import time
from collections.abc import Callable

from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.rules import seconds
from runbooks.engine.context import Session


def watched(session: Session, watch: str, show: Callable[[], ExitCode]) -> ExitCode:
    """Show a view; with `watch`, a duration, repeat it at that interval.

    Raises UsageError if `watch` is not a duration.
    """
    every_s = _every_s(watch)
    while True:
        code = show()
        if not every_s:
            return code
        time.sleep(every_s)
        session.begin_again()


def _every_s(watch: str) -> float:
    """Return the seconds of `2` or `2s`; 0 for ""."""
    if not watch:
        return 0.0
    try:
        every_s = seconds(int(watch) if watch.isdecimal() else watch)
    except ValueError:
        every_s = 0.0
    if every_s < 1:
        raise UsageError(
            f"--watch expects an interval of 1s or more, got {watch!r}", "for example --watch 2s"
        )
    return every_s
