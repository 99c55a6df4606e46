"""The archived messages of a run, by queue, reason and task, each with samples."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from runbooks.broker.archive.reader import Archived, Fate, Ledger, read
from runbooks.broker.archive.search import archives_in, queue_of, row
from runbooks.core.errors import RunbookError

_SAMPLES = 3
_UNREAD = "no task can be read in it"
_FATES = {
    Fate.TAKEN: "in the archive",
    Fate.RESTORED: "restored",
    Fate.MOVED: "moved to another queue",
}


class Taken(Struct):
    """Messages of one queue and one task that were archived for one reason."""

    queue: str
    reason: str
    task: str
    count: int
    fates: Mapping[str, int]
    """How many of them are where now."""
    samples: list[Mapping[str, Any]]


def taken(directory: Path) -> tuple[list[Taken], list[str]]:
    """Return the messages in a run's archives, the most first, and what cannot be read there."""
    found: list[Taken] = []
    problems: list[str] = []
    for path in archives_in(directory):
        try:
            ledger = read(path)
        except RunbookError as error:
            problems.append(error.problem)
            continue
        problems += ledger.problems
        found += _of(ledger, queue_of(path))
    return sorted(found, key=lambda one: (-one.count, one.queue, one.task)), problems


def _of(ledger: Ledger, queue: str) -> Iterator[Taken]:
    fates: dict[tuple[str, str], Counter[str]] = {}
    samples: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for message in _out(ledger):
        shown = row(message, ledger, queue)
        kind = (message.reason, shown["task"] or _UNREAD)
        fates.setdefault(kind, Counter())[_FATES[ledger.fates[message.n]]] += 1
        kept = samples.setdefault(kind, [])
        if len(kept) < _SAMPLES:
            kept.append(shown)
    for (reason, task), counts in fates.items():
        yield Taken(queue, reason, task, counts.total(), counts, samples[reason, task])


def _out(ledger: Ledger) -> Iterator[Archived]:
    return (
        message
        for message in ledger.messages.values()
        if ledger.fates[message.n] is not Fate.QUEUED
    )
