"""A view once, or with --watch look after look until ^C."""

import time
from collections.abc import Callable

from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.rules import seconds
from runbooks.engine.context import Session


def watched(session: Session, watch: str, show: Callable[[], ExitCode]) -> ExitCode:
    """Show a view; with `watch`, which says how often, again and again. Raises UsageError where
    that is not a duration.
    """
    every_s = _every_s(watch)
    while True:
        code = show()
        if not every_s:
            return code
        time.sleep(every_s)
        session.begin_again()


def _every_s(watch: str) -> float:
    """Seconds of `2` or `2s`; 0 where nothing was said."""
    if not watch:
        return 0.0
    try:
        every_s = seconds(int(watch) if watch.isdecimal() else watch)
    except ValueError:
        every_s = 0.0
    if every_s < 1:
        raise UsageError(
            f"--watch {watch!r}: expected how often to look, 1s or more", "for example --watch 2s"
        )
    return every_s
