"""`inv undo RUN`: undo the changes of a run, newest first; show first what cannot be undone."""

from collections.abc import Sequence
from functools import partial

from runbooks.core.command import Command
from runbooks.core.effects import LostContents, StartByHand
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.reporter import Outcome
from runbooks.core.wording import counted
from runbooks.engine.context import Session
from runbooks.engine.journal import RunRecord, find_run, list_runs
from runbooks.engine.recap import Recap
from runbooks.engine.undo import Undo, count_left, newer_on_the_same, plan_undo, settle
from runbooks.engine.undo import undo as take_back
from runbooks.history import headline


def undo(session: Session, run: str, *, malformed: bool) -> ExitCode:
    """Return 2 if a change can no longer be undone, 4 if a host does not answer."""
    record = find_run(session.options.state_directory, run, to_undo=True)
    session.require_consent_possible()
    _require_same(session, record)
    _require_newest(session, record)
    undos = plan_undo(session, record, malformed=malformed)
    session.reporter.message(headline(record))
    items = [(undo.change, undo.outcome, undo.why) for undo in undos]
    session.reporter.undo_plan(items, dry_run=session.options.dry_run)
    todo = [undo for undo in undos if undo.outcome is Outcome.CHANGED]
    for host in sorted({undo.change.host for undo in undos if undo.away}):
        session.reporter.warning(
            f"{host} is skipped: it does not answer", "run the same command again when it answers"
        )
    _warn_of_lost(session, record, undos)
    already = any(undo.outcome is Outcome.ALREADY for undo in undos)
    if already and not todo and not session.options.dry_run:
        settle(session, record, malformed=malformed)
    if session.options.dry_run or not todo:
        left = Recap()
        count_left(undos, left)
        return left.exit_code
    session.require_alone(session.broker.other_run())
    session.ask(f"Undo {counted(len(todo), 'change')} of run {record.id}?")
    recap = Recap()
    take_back(session, record, undos, recap, partial(_require_newest, session, record))
    session.reporter.recap(recap.tallies, undo="")
    for undo in undos:
        if isinstance(undo.change.do, StartByHand) and undo.outcome is Outcome.CANNOT:
            name = f"{undo.change.do.name} on {undo.change.host}"
            session.reporter.warning(
                f"{name} no longer runs, and no service manager can start it",
                "start it the way it was started before: " + undo.change.do.told,
            )
    return recap.exit_code


def _warn_of_lost(session: Session, record: RunRecord, undos: Sequence[Undo]) -> None:
    """Warn once of all files whose contents the record no longer has."""
    lost = [undo.change.do for undo in undos if undo.outcome is Outcome.CANNOT]
    for why in sorted({effect.why for effect in lost if isinstance(effect, LostContents)}):
        session.reporter.warning(
            f"{why}: the contents of some files before run {record.id} are not known",
            "restore the record from a backup and run the same command again; without a backup,"
            f" edit these files manually: {Command('show', record.id)} shows what was changed in"
            " them, without secrets",
        )


def _require_newest(session: Session, record: RunRecord) -> None:
    """Raise UsageError if a later run, not undone, changed the same things."""
    if newer := newer_on_the_same(record, list_runs(session.options.state_directory)):
        raise UsageError(
            f"run {newer.id} is newer, changed the same things and is not undone; nothing was"
            " changed",
            f"undo it first: {Command('undo', newer.id)}",
        )


def _require_same(session: Session, record: RunRecord) -> None:
    """Raise UsageError if a run belongs to another application or broker."""
    here = (session.fleet.app.app, session.broker.name)
    theirs = (record.application or here[0], record.broker)
    if theirs != here:
        raise UsageError(
            f"run {record.id} changed {theirs[0]} at {theirs[1]}, and this inventory is of"
            f" {here[0]} at {here[1]}; nothing was changed",
            f"to undo the run, name its inventory: --inventory {record.inventory}",
        )
