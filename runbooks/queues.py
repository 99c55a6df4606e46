"""`inv queues`: every queue, or one in detail, as it is now; changes nothing."""

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
    """Look at the queues; with `watch`, which says how often, again and again until ^C."""
    if (asked.grep or asked.exact) and watch:
        raise UsageError(
            "--watch looks at lengths and samples again and again",
            "leave --grep and --exact out with it",
        )
    look = session.broker.queue_looks(
        session.fleet.queues, lambda at, depths: _before(session, at, depths)
    )

    def show() -> ExitCode:
        view = look(asked)
        if session.fleet.found:
            view = replace(
                view, queues=tuple(replace(queue, in_inventory=None) for queue in view.queues)
            )
        count = len(view.queues)
        where = (session.fleet.app.app, session.options.inventory, session.broker.name)
        session.reporter.about(
            About(*where, queues=Seen(count, count), other_run=session.broker.other_run())
        )
        session.reporter.view(view)
        return ExitCode.OK

    return watched(session, watch, show)


def _before(
    session: Session, at: float, depths: Mapping[str, int]
) -> Mapping[str, tuple[float, int]]:
    """What the monitor saw of the queues; nothing where it has no history that can be read."""
    path = history_path(session.fleet, session.options.state_directory)
    try:
        require_private(path.parents[2], path.parents[1], path.parent, path)
        return depths_before(path, at, depths) if path.exists() else {}
    except (sqlite3.Error, OSError, RunbookError):
        return {}
