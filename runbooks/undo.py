"""`inv undo RUN`: take a run's changes back, newest first; what cannot be is said before anything is touched."""

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.reporter import Outcome
from runbooks.engine.context import Session
from runbooks.engine.journal import RunRecord, find_run, list_runs
from runbooks.engine.recap import Recap
from runbooks.engine.undo import count_left, newer_on_the_same, plan_undo, settle
from runbooks.engine.undo import undo as take_back
from runbooks.history import headline


def undo(session: Session, run: str, *, malformed: bool) -> ExitCode:
    """Exit code 2 where what could have been taken back cannot be any more, 4 where a host does not answer."""
    record = find_run(session.options.state_directory, run, to_undo=True)
    session.require_consent_possible()
    _require_same(session, record)
    if newer := newer_on_the_same(record, list_runs(session.options.state_directory)):
        raise UsageError(
            f"run {newer.id} is newer, changed the same things and still stands; nothing was changed",
            f"undo it first: {Command('undo', newer.id)}",
        )
    undos = plan_undo(session, record, malformed=malformed)
    session.reporter.message(headline(record))
    items = [(undo.change, undo.outcome, undo.why) for undo in undos]
    session.reporter.undo_plan(items, dry_run=session.options.dry_run)
    todo = [undo for undo in undos if undo.outcome is Outcome.CHANGED]
    for host in sorted({undo.change.host for undo in undos if undo.away}):
        session.reporter.warning(f"{host} is left out", "run the same command again when it answers")
    if not session.options.dry_run and not todo and any(undo.outcome is Outcome.ALREADY for undo in undos):
        settle(session, record, malformed=malformed)
    if session.options.dry_run or not todo:
        left = Recap()
        count_left(undos, left)
        return left.exit_code
    session.ask(f"Take these {len(todo)} changes of run {record.id} back?")
    recap = Recap()
    take_back(session, record, undos, recap)
    session.reporter.recap(recap.tallies, undo="")
    return recap.exit_code


def _require_same(session: Session, record: RunRecord) -> None:
    """Raise UsageError where a run belongs to another application, or to another broker."""
    here = (session.fleet.app.app, session.broker.name)
    theirs = (record.application or here[0], record.broker)
    if theirs != here:
        raise UsageError(
            f"run {record.id} was made on {theirs[0]} at {theirs[1]}, and this inventory is of {here[0]} at {here[1]}; "
            "nothing was changed",
            f"to undo it, name its inventory with --inventory: {record.inventory}",
        )
