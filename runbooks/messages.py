"""`inv messages QUEUE`: the messages of a queue, the next to run first; changes nothing, and
unpickles nothing.
"""

from runbooks.broker.views.message_looks import Wanted
from runbooks.core.errors import ExitCode
from runbooks.core.reporter import About, Seen
from runbooks.engine.context import Session


def messages(session: Session, queue: str, wanted: Wanted) -> ExitCode:
    """Show those that are wanted of what waits in the queue, or of what was fetched from it."""
    view = session.broker.messages(queue, session.fleet.queues, wanted)
    where = (session.fleet.app.app, session.options.inventory, session.broker.name)
    session.reporter.about(About(*where, queues=Seen(1, 1), other_run=session.broker.other_run()))
    session.reporter.view(view)
    return ExitCode.OK
