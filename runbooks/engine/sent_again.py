"""Tasks that are sent again. Their new ids are derived from the old ones.

So the archives show which of them were already sent.
"""

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from runbooks.broker.archive.reader import Fate, read
from runbooks.broker.archive.search import archives_in, row
from runbooks.core.effects import BROKER, Change, RecallMessages, SendAgain
from runbooks.core.outside import as_lines
from runbooks.core.wording import counted
from runbooks.engine.context import Session
from runbooks.engine.journal import list_runs

RETRY = "retry"
"""The verb whose runs have the new messages in their archives."""

_NEW_IDS = uuid.UUID("5b0c2b7e-2f7a-4a5e-9d59-6f0f3c0a8e11")


class Old(Struct, frozen=True):
    """A task to send again."""

    id: str
    """Its old id."""
    task: str
    why: str
    """Its exception, or why it was archived."""


class Earlier(Struct, frozen=True):
    """A new message that an earlier run has recorded."""

    run: str
    archive: Path
    sent: bool
    """Whether it was sent."""


def new_id(old: str) -> str:
    """Return the id under which a task is sent again."""
    return str(uuid.uuid5(_NEW_IDS, old))


def reason_for(old: str) -> str:
    """Return the reason that an archive gives for the new message."""
    return f"sent again for {old}"


def sent_earlier(session: Session) -> dict[str, Earlier]:
    """Return the new messages that runs at this broker have recorded, by new id."""
    found: dict[str, Earlier] = {}
    for record in list_runs(session.options.state_directory):
        if record.verb == RETRY and record.broker == session.broker.name:
            for path in archives_in(record.directory):
                found.update(_in_archive(record.id, path))
    return found


def _in_archive(run: str, path: Path) -> Iterator[tuple[str, Earlier]]:
    ledger = read(path)
    for n in ledger.messages:
        fate = ledger.fates[n]
        if fate is Fate.QUEUED:
            continue
        task_id = row(ledger.messages[n], ledger, "")["id"]
        sent = fate is Fate.RESTORED and n not in ledger.unsure
        yield task_id, Earlier(run, path, sent)


def send_change(
    archive: str,
    queue: str,
    tasks: Sequence[Old],
    per_s: float,
    lines: Sequence[str],
    *,
    of_archive: bool = False,
) -> Change:
    """Return the change that sends the new messages of an archive to its queue.

    `of_archive`: the old messages are in an archive, too. `per_s` is the rate in messages a second.
    """
    taken_from = ""
    why = "error"
    if of_archive:
        taken_from = queue
        why = "reason"
    ids: dict[str, str] = {}
    rows = []
    for one in tasks:
        new = new_id(one.id)
        ids[new] = one.id
        rows.append({"id": one.id, "new_id": new, "task": one.task, why: one.why})
    token = uuid.uuid4().hex
    return Change(
        BROKER,
        RETRY,
        f"send {counted(len(tasks), 'task')} again to {queue}",
        SendAgain(archive, ids, per_s, token, taken_from),
        RecallMessages(archive, token),
        as_lines(lines),
        tuple(rows),
        len(tasks),
    )
