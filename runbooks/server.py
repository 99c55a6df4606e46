"""`inv broker`: what the Redis server reports, and what it means for Celery; changes nothing."""

from runbooks.core.errors import ExitCode
from runbooks.core.reporter import About
from runbooks.engine.context import Session


def server(session: Session) -> ExitCode:
    """Show the server's facts once."""
    view = session.broker.server(session.fleet.queues)
    about = About(session.fleet.app.app, session.options.inventory, session.broker.name)
    session.reporter.about(about)
    session.reporter.view(view)
    return ExitCode.OK
