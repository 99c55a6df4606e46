"""`inv restart-workers`: restart every worker and beat, and prove that each came back."""

from runbooks.core.errors import ExitCode
from runbooks.engine.session import Session
from runbooks.engine.walk import walk
from runbooks.steps.step import Needs


def restart_workers(session: Session) -> ExitCode:
    """A worker counts as restarted when it runs since later than this look, answers, knows its tasks and consumes."""
    session.require_consent_possible()
    workers = session.workers()
    snapshot = session.observe(workers.needs | Needs.FILES)
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    return walk(session, (session.workers(since),), snapshot)
