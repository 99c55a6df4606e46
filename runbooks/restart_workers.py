"""`inv restart-workers`: restart every worker and beat, and prove that each came back."""

from runbooks.core.errors import ExitCode, RunbookError
from runbooks.diagnosis.code import discards
from runbooks.engine.rolling import Rolling
from runbooks.engine.session import Session
from runbooks.engine.walk import walk
from runbooks.steps.step import Needs


def restart_workers(session: Session, rolling: Rolling) -> ExitCode:
    """A worker counts as restarted when it runs since later than this look, answers, knows its tasks and consumes.

    Raises RunbookError, before any change, where a worker would throw away messages that wait for it.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    for node, queue, task, count in discards(session.fleet, snapshot, repaired=False):
        raise RunbookError(
            f"nothing was changed: {node} would discard {count:,} messages of {task} that wait in {queue}, "
            "for the application as it is does not register this task",
            "`inv diagnose` tells why, `inv remediate` repairs what it can; `inv clean-queues` takes messages out",
        )
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    return walk(session, (session.nothing_leaked(), session.workers(since)), snapshot, rolling=rolling)
