"""`inv runs` and `inv show RUN`: what was done before, from the journals."""

import time
from pathlib import Path

from runbooks.core.errors import ExitCode
from runbooks.core.reporter import Outcome, Reporter
from runbooks.engine.journal import RunRecord, find_run, list_runs


def runs(reporter: Reporter, state_directory: Path) -> ExitCode:
    """All runs, oldest first."""
    rows = [
        {
            "run": record.id,
            "verb": record.verb,
            "started (UTC)": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.started_at)),
            "by": record.operator,
            "changes": sum(entry.outcome is Outcome.CHANGED for entry in record.entries),
            "state": record.state,
        }
        for record in list_runs(state_directory)
    ]
    reporter.table("runs", rows)
    return ExitCode.OK


def headline(record: RunRecord) -> str:
    """Which run it is, in a line."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.started_at))
    return f"Run {record.id}: {record.verb} by {record.operator}, {started} UTC, {record.state}"


def show(reporter: Reporter, state_directory: Path, run: str) -> ExitCode:
    """One run: each change with its diff or its messages, and what became of it."""
    record = find_run(state_directory, run)
    reporter.message(headline(record))
    reporter.message(f"Inventory {record.inventory}; record {record.directory}")
    if not record.entries:
        reporter.message("It changed nothing.")
        return ExitCode.OK
    reporter.plan([entry.change for entry in record.entries], dry_run=False)
    for entry in record.entries:
        detail = entry.detail or ("" if entry.outcome else "begun; undo looks first how far it came")
        reporter.change(entry.change, entry.outcome or Outcome.UNKNOWN, detail + (" (undone)" if entry.undone else ""))
    return ExitCode.OK
