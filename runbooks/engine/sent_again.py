"""Tasks that are sent again under new ids, which follow from the old ones: so what was sent shows
in the archives.
"""

import uuid
from collections.abc import Sequence
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
    """A task that is to be sent again, by its old id; `why` is its exception, or why it was taken
    out of its queue.
    """

    id: str
    task: str
    why: str


class Earlier(Struct, frozen=True):
    """A new message that an earlier run has written down: in which archive, and whether it was
    sent.
    """

    run: str
    archive: Path
    sent: bool


def new_id(old: str) -> str:
    """The id under which a task is sent again."""
    return str(uuid.uuid5(_NEW_IDS, old))


def reason_for(old: str) -> str:
    """What the archive of a run says of the new message."""
    return f"sent again for {old}"


def sent_earlier(session: Session) -> dict[str, Earlier]:
    """What runs at this broker have written down, by new id."""
    found = {}
    for record in list_runs(session.options.state_directory):
        if record.verb != RETRY or record.broker != session.broker.name:
            continue
        for path in archives_in(record.directory):
            ledger = read(path)
            for n in ledger.messages:
                if (fate := ledger.fates[n]) is not Fate.QUEUED:
                    task_id = row(ledger.messages[n], ledger, "")["id"]
                    found[task_id] = Earlier(
                        record.id, path, fate is Fate.RESTORED and n not in ledger.unsure
                    )
    return found


def send_change(archive: str, queue: str, tasks: Sequence[Old], per_s: float, lines: Sequence[str],
                *, of_archive: bool = False) -> Change:  # fmt: skip
    """The change that sends the new messages of an archive to its queue; `of_archive`: the old ones
    are in one, too.
    """
    token = uuid.uuid4().hex
    ids = {new_id(one.id): one.id for one in tasks}
    why = "reason" if of_archive else "error"
    rows = tuple(
        {"id": one.id, "new_id": new_id(one.id), "task": one.task, why: one.why} for one in tasks
    )
    return Change(
        BROKER, RETRY, f"send {counted(len(tasks), 'task')} again to {queue}",
        SendAgain(archive, ids, per_s, token, queue if of_archive else ""),
        RecallMessages(archive, token), as_lines(lines), rows, len(tasks),
    )  # fmt: skip
