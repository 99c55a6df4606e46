"""`inv queues`: every queue, or one in detail; changes nothing."""

import sqlite3
from collections.abc import Mapping

from msgspec.structs import replace

from runbooks.broker.views.queue_looks import Asked
from runbooks.core.errors import ExitCode, RunbookError, UsageError
from runbooks.core.private import require_private
from runbooks.core.reporter import About, Seen
from runbooks.engine.context import Session
from runbooks.engine.watched import watched
from runbooks.monitoring.history import depths_before, history_path


def queues(session: Session, asked: Asked, *, watch: str) -> ExitCode:
    """Show the queues; with `watch`, an interval, repeatedly until ^C."""
    if (asked.grep or asked.exact) and watch:
        raise UsageError(
            "--watch shows lengths and samples repeatedly",
            "use it without --grep and --exact",
        )

    def before(at: float, depths: Mapping[str, int]) -> Mapping[str, tuple[float, int]]:
        return _before(session, at, depths)

    look = session.broker.queue_looks(session.fleet.queues, before)

    def show() -> ExitCode:
        view = look(asked)
        if session.fleet.found:
            without = tuple(replace(queue, in_inventory=None) for queue in view.queues)
            view = replace(view, queues=without)
        count = len(view.queues)
        about = About(
            session.fleet.app.app,
            session.options.inventory,
            session.broker.name,
            queues=Seen(count, count),
            other_run=session.broker.other_run(),
        )
        session.reporter.about(about)
        session.reporter.view(view)
        return ExitCode.OK

    return watched(session, watch, show)


def _before(
    session: Session,
    at: float,
    depths: Mapping[str, int],
) -> Mapping[str, tuple[float, int]]:
    """What the monitor saw of the queues; empty if it has no readable history."""
    path = history_path(session.fleet, session.options.state_directory)
    try:
        require_private(path.parents[2], path.parents[1], path.parent, path)
        if path.exists():
            return depths_before(path, at, depths)
    except (sqlite3.Error, OSError, RunbookError):
        pass
    return {}
