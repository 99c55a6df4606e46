"""`inv runs` and `inv show RUN`: earlier runs, read from their journals."""

import time
from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.effects import RunTask
from runbooks.core.errors import ExitCode
from runbooks.core.reporter import Outcome, Reporter
from runbooks.engine.journal import RESTORE, Entry, RunRecord, find_run, list_runs


def runs(reporter: Reporter, state_directory: Path) -> ExitCode:
    """List all runs, oldest first; a damaged one as far as it can be read."""
    records = list_runs(state_directory)
    rows = [
        {
            "run": record.id,
            "verb": record.verb,
            "started (UTC)": _utc(record.started_at),
            "by": record.operator,
            "application": record.application,
            "inventory": record.inventory,
            "changes": sum(entry.outcome is Outcome.CHANGED for entry in record.entries),
            "state": record.state,
        }
        for record in records
    ]
    reporter.table("runs", rows)
    if not records:
        reporter.message(f"No runs are recorded in {state_directory}.")
    for record in records:
        if record.damage:
            reporter.warning(record.damage, RESTORE)
    return ExitCode.OK


def headline(record: RunRecord) -> str:
    """Return one line that identifies a run."""
    return (
        f"Run {record.id}: {record.verb} by {record.operator}, {_utc(record.started_at)} UTC,"
        f" {record.state}"
    )


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) if at else ""


def show(reporter: Reporter, state_directory: Path, run: str) -> ExitCode:
    """Show one run: each change with its diff or its messages, and its result."""
    record = find_run(state_directory, run)
    reporter.message(headline(record))
    reporter.message(f"Inventory {record.inventory}; record {record.directory}")
    if not record.entries:
        reporter.message("It changed nothing.")
        return ExitCode.OK
    for entry in record.entries:
        # A change that failed was never there, so it is not shown as undone.
        undone = entry.undone and entry.outcome is not Outcome.FAILED
        outcome = entry.outcome or Outcome.UNKNOWN
        reporter.recorded(entry.change, outcome, _detail(entry), undone=undone)
    return ExitCode.OK


def _detail(entry: Entry) -> str:
    """Return what the record says of the result of a change."""
    detail = entry.unproved or entry.detail
    if not detail and not entry.outcome:
        detail = "begun, with no result; undo checks first how far it got"
    if isinstance(entry.change.do, RunTask) and detail.startswith("sent"):
        status = Command("run-task", "--status", entry.change.do.task_id)
        detail += f"; see its state: {status}"
    return detail
