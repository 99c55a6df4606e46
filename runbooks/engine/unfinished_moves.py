"""Find moves of messages that ended half-way: some messages are in archives, in neither queue."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from runbooks.broker.archive.reader import Fate, Ledger, read
from runbooks.broker.archive.search import queue_of
from runbooks.core.command import Command
from runbooks.core.effects import TakeMessages, TakeUnacked
from runbooks.core.errors import RunbookError
from runbooks.core.wording import counted, them
from runbooks.engine.context import Session
from runbooks.engine.journal import RunRecord, failed_runs

_ENDED = {
    None: "was killed, or is still running",
    "interrupted": "was interrupted",
    "failed": "has failed",
    "unreachable": "did not reach every host",
}


def warn_of_half_moves(session: Session) -> None:
    """Warn of runs on this broker whose messages are in neither queue; say how to restore them."""
    for record in failed_runs(session.options.state_directory):
        if record.outcome != "ok" and record.broker == session.broker.name:
            _warn(session, record)


def _warn(session: Session, record: RunRecord) -> None:
    for path in _archives(record):
        with suppress(RunbookError):
            ledger = read(path)
            count = _unmoved(ledger)
            if count:
                most = ""
                if ledger.unsettled:
                    most = "up to "
                session.reporter.warning(
                    f"run {record.id} {_ENDED[record.outcome]}: it took {most}"
                    f"{counted(count, 'message')} out of {queue_of(path)} to move"
                    f" {them(count)}; now in its archive, in no queue",
                    f"restore {them(count)} with {Command('undo', record.id)}, then run this again",
                )


def _archives(record: RunRecord) -> Iterator[Path]:
    for entry in record.entries:
        if not entry.undone and isinstance(entry.change.do, TakeMessages | TakeUnacked):
            yield record.directory / entry.change.do.archive


def _unmoved(ledger: Ledger) -> int:
    """Count the messages that should have been moved and were not; uncertain batches count."""
    unsure = ledger.unsure
    count = 0
    for n in ledger.messages:
        if not ledger.lots[n].to:
            continue
        if ledger.fates[n] is Fate.TAKEN or n in unsure:
            count += 1
    return count
