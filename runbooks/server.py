"""`inv broker`: what the broker's server tells of itself, and what it means for Celery; changes
nothing.
"""

from runbooks.core.errors import ExitCode
from runbooks.core.reporter import About
from runbooks.engine.context import Session


def server(session: Session) -> ExitCode:
    """Ask the server once."""
    view = session.broker.server(session.fleet.queues)
    session.reporter.about(
        About(session.fleet.app.app, session.options.inventory, session.broker.name)
    )
    session.reporter.view(view)
    return ExitCode.OK
