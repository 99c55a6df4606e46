"""`inv undo RUN`: take a run's changes back, newest first; what cannot be is said before anything is touched."""

from runbooks.core.errors import ExitCode
from runbooks.core.reporter import Outcome
from runbooks.engine.apply import Recap
from runbooks.engine.journal import find_run
from runbooks.engine.session import Session
from runbooks.engine.undo import plan_undo
from runbooks.engine.undo import undo as take_back


def undo(session: Session, run: str, *, malformed: bool) -> ExitCode:
    """Exit code 2 where something could not be taken back; what could be, was."""
    session.require_consent_possible()
    record = find_run(session.options.state_directory, run)
    undos = plan_undo(session, record, malformed=malformed)
    items = [(undo.change, undo.outcome, undo.why) for undo in undos]
    session.reporter.undo_plan(items, dry_run=session.options.dry_run)
    todo = [undo for undo in undos if undo.outcome is Outcome.CHANGED]
    if session.options.dry_run or not todo:
        return ExitCode.OK
    session.ask(f"Take these {len(todo)} changes of run {record.id} back?")
    recap = Recap()
    take_back(session, record, undos, recap)
    session.reporter.recap(recap.tallies, undo="")
    return recap.exit_code
