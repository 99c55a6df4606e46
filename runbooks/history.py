"""`inv runs` and `inv show RUN`: what was done before, from the journals."""

import time
from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.effects import RunTask
from runbooks.core.errors import ExitCode
from runbooks.core.reporter import Outcome, Reporter
from runbooks.engine.journal import MEND, RunRecord, find_run, list_runs


def runs(reporter: Reporter, state_directory: Path) -> ExitCode:
    """All runs, oldest first; a damaged one as far as it can be read."""
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
        reporter.message(f"Nothing is recorded in {state_directory}.")
    for record in records:
        if record.damage:
            reporter.warning(record.damage, MEND)
    return ExitCode.OK


def headline(record: RunRecord) -> str:
    """Which run it is, in a line."""
    return (
        f"Run {record.id}: {record.verb} by {record.operator}, {_utc(record.started_at)} UTC,"
        f" {record.state}"
    )


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) if at else ""


def show(reporter: Reporter, state_directory: Path, run: str) -> ExitCode:
    """One run: each change with its diff or its messages, and what became of it."""
    record = find_run(state_directory, run)
    reporter.message(headline(record))
    reporter.message(f"Inventory {record.inventory}; record {record.directory}")
    if not record.entries:
        reporter.message("It changed nothing.")
        return ExitCode.OK
    for entry in record.entries:
        detail = (
            entry.unproved
            or entry.detail
            or ("" if entry.outcome else "begun; undo looks first how far it came")
        )
        if isinstance(entry.change.do, RunTask) and detail.startswith("sent"):
            detail += f"; how it stands: {Command('run-task', '--status', entry.change.do.task_id)}"
        undone = (
            entry.undone and entry.outcome is not Outcome.FAILED
        )  # what was never made is not undone
        reporter.recorded(entry.change, entry.outcome or Outcome.UNKNOWN, detail, undone=undone)
    return ExitCode.OK
