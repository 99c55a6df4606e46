"""`inv restart-workers`: restart every worker and beat, and prove that each came back."""

from runbooks.core.errors import ExitCode
from runbooks.diagnosis.code import would_discard
from runbooks.engine.rolling import Rolling
from runbooks.engine.session import Session
from runbooks.engine.walk import walk
from runbooks.steps.step import Needs


def restart_workers(session: Session, rolling: Rolling) -> ExitCode:
    """A worker counts as restarted when it runs since later than this look, answers, knows its tasks and consumes.

    One that would throw away messages that wait for it is left as it is.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    discarding = would_discard(session.fleet, snapshot, repaired=False)
    blocking = [*discarding, *session.blocking(snapshot)]
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    steps = (session.nothing_leaked(), session.workers(since))
    return walk(session, steps, snapshot, rolling=rolling, blocking=blocking)
