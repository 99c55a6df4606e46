"""`inv messages QUEUE`: the messages of a queue, the next to run first.

It changes nothing and unpickles nothing.
"""

from runbooks.broker.views.message_looks import Wanted
from runbooks.core.errors import ExitCode
from runbooks.core.reporter import About, Seen
from runbooks.engine.context import Session


def messages(session: Session, queue: str, wanted: Wanted) -> ExitCode:
    """Show the wanted messages that wait in the queue, or were fetched from it."""
    view = session.broker.messages(queue, session.fleet.queues, wanted)
    about = About(
        session.fleet.app.app,
        session.options.inventory,
        session.broker.name,
        queues=Seen(1, 1),
        other_run=session.broker.other_run(),
    )
    session.reporter.about(about)
    session.reporter.view(view)
    return ExitCode.OK
