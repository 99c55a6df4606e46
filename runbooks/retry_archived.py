"""`inv retry --archive RUN`: send tasks again whose messages were taken out of a queue: the same
message, a new id.

As with failures, what was sent before is known by its new id, and never sent twice. The old message
stays where it is.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field

from runbooks.archives import archives_of, find_archives, out_of_queue
from runbooks.broker.archive.reader import Archived, Fate, Ledger, read
from runbooks.broker.archive.search import archive_name, queue_of
from runbooks.broker.messages.body import links, unread
from runbooks.broker.messages.build import under_another_id
from runbooks.broker.messages.parse import Message, envelope_of, headers_of, parse
from runbooks.core.effects import BROKER, Change
from runbooks.core.errors import ExitCode, RunbookError, UsageError
from runbooks.core.model import NodeState, Rule
from runbooks.core.needs import Needs
from runbooks.core.wording import counted
from runbooks.engine.context import Session
from runbooks.engine.one_by_one import one_by_one
from runbooks.engine.recap import Recap
from runbooks.engine.run import Run
from runbooks.engine.sent_again import (
    RETRY,
    Earlier,
    Old,
    new_id,
    reason_for,
    send_change,
    sent_earlier,
)

_DONE = "already"
"""The last word of a reason that leaves nothing to do."""


class _Meant(Struct, frozen=True):
    """A message to be sent again: where it stands, and what an operator has to know of it."""

    path: Path
    n: int
    task: Old
    retries: int
    is_linked: bool
    has_parent: bool
    was_fetched: bool


class _Sorted(Struct):
    """The messages that are meant: to be sent, by queue; to be gone on with, by archive; left out,
    by reason.
    """

    new: dict[str, list[_Meant]] = field(default_factory=lambda: defaultdict(list))
    begun: dict[Path, list[_Meant]] = field(default_factory=lambda: defaultdict(list))
    left_out: Counter[str] = field(default_factory=Counter)


def retry_archived(session: Session, run: str, rule: Rule | None, per_s: float) -> ExitCode:
    """Exit code 2 where a message that is meant has to be left out. Raises RunbookError for a
    damaged archive.
    """
    record = find_archives(session.options.state_directory, run)
    session.require_consent_possible()
    if record.broker != session.broker.name:
        raise UsageError(
            f"they came from {record.broker}, not {session.broker.name}", "name the right inventory"
        )
    if record.verb == RETRY:
        raise UsageError(
            f"run {record.id} has sent tasks again itself",
            "to go on with it give its own command again",
        )
    snapshot = session.observe(Needs.NODES)
    session.require_alone(snapshot.other_run)
    assert snapshot.broker is not None
    looked_at = _Look(session, snapshot.broker.nodes, snapshot.at)
    for path, ledger in archives_of(session.reporter, record, rule):
        looked_at.at(path, ledger, rule)
    found, recap = looked_at.found, Recap()
    for why, count in found.left_out.most_common():
        session.reporter.warning(f"{counted(count, 'message')} left out: {why}", "")
        recap.at(BROKER).blocked += not why.endswith(_DONE)
    changes = [*_going_on(found, per_s), *_new(found, per_s)]
    return one_by_one(
        session, changes, recap, "Send them again?", lambda run: _write_down(run, found)
    )


class _Look:
    """Sorts the messages of archives by what is to be done about them."""

    def __init__(self, session: Session, nodes: Mapping[str, NodeState], now: float) -> None:
        self._session, self._nodes, self._now = session, nodes, now
        self._earlier: Mapping[str, Earlier] = sent_earlier(session)
        self.found = _Sorted()

    def at(self, path: Path, ledger: Ledger, rule: Rule | None) -> None:
        """Sort those of an archive that the rule means."""
        if ledger.problems:
            raise RunbookError(
                f"{path} is damaged: {ledger.problems[0]}",
                "put the file back from a backup, then run again",
            )
        differs, note = self._session.broker.difference(path)
        if note:
            self._session.reporter.warning(
                f"{path.name}: {note.replace('RUN', path.parent.name)}", ""
            )
        stands = {*differs.here, *differs.doubtful}
        for message in out_of_queue(ledger, rule):
            look = parse(message.item)
            before = self._earlier.get(new_id(look.id)) if isinstance(look, Message) else None
            if why := self._why_not(path, ledger, message, look, before, stands):
                self.found.left_out[why] += 1
                continue
            assert isinstance(look, Message)
            meant = _meant(path, message, look)
            if before:
                self.found.begun[before.archive].append(meant)
            else:
                self.found.new[queue_of(path)].append(meant)

    def _why_not(
        self,
        path: Path,
        ledger: Ledger,
        message: Archived,
        look: object,
        before: Earlier | None,
        stands: set[int],
    ) -> str:
        """Why a message cannot be sent again, or not safely; "" where it can."""
        if ledger.fates[message.n] is not Fate.TAKEN:
            return f"{_WHERE[ledger.fates[message.n]]} {_DONE}"
        if message.n in ledger.unsure:
            return "the run was killed, and whether they were taken out is not known"
        if message.n in stands:
            return "Redis went back: it stands in its queue again, or it may have run"
        if not isinstance(look, Message):
            return "it is malformed, or its task is not known"
        if before and before.sent:
            return f"sent again by run {before.run} {_DONE}"
        return _not_safe(message.item, look, self._now) or self._not_taken(
            look.task, queue_of(path)
        )

    def _not_taken(self, task: str, queue: str) -> str:
        consumers = [node for node in self._nodes.values() if queue in node.queues]
        if not consumers:
            return f"no node that answers consumes {queue}"
        if not all(task in node.registered for node in consumers):
            return f"a node that consumes {queue} does not know {task}, and would discard it"
        return ""


_WHERE = {Fate.RESTORED: "put back into their queue", Fate.MOVED: "moved to another queue"}


def _not_safe(raw: bytes, look: Message, now: float) -> str:
    """What of a message itself forbids that it is sent again."""
    if look.form.protocol != 2:
        return f"{look.task} has a message of protocol 1, with its id in the body"
    if (linked := links(raw)) is None:
        return f"{look.task} has a body {unread(raw)}, so whether a chord waits for it is not known"
    names, group = linked
    if group or "chord" in names:
        return f"{look.task} was one of a group or chord, which would not learn of another task"
    if look.expires_at is not None and look.expires_at <= now:
        return f"{look.task} has expired, so a worker would discard it"
    return ""


def _meant(path: Path, message: Archived, look: Message) -> _Meant:
    names, _ = links(message.item) or ((), "")
    return _Meant(
        path,
        message.n,
        Old(look.id, look.task, message.reason),
        look.retries,
        is_linked=bool(names),
        has_parent=bool(headers_of(envelope_of(message.item)).get("parent_id")),
        was_fetched=message.fetched_at is not None,
    )


def _new(found: _Sorted, per_s: float) -> Iterator[Change]:
    for queue, some in found.new.items():
        yield _change(archive_name(queue), queue, some, per_s, "")


def _going_on(found: _Sorted, per_s: float) -> Iterator[Change]:
    for path, some in found.begun.items():
        was = f"written down by run {path.parent.name}, which did not send them, or was undone"
        yield _change(str(path.absolute()), queue_of(path), some, per_s, was)


def _change(archive: str, queue: str, some: list[_Meant], per_s: float, was: str) -> Change:
    retried, linked = sum(one.retries > 0 for one in some), sum(one.is_linked for one in some)
    parents, fetched = sum(one.has_parent for one in some), sum(one.was_fetched for one in some)
    kinds = Counter((one.task.task, one.task.why) for one in some).most_common()
    lines = [
        *(f"{n:,} × {task}, taken out: {why}" for (task, why), n in kinds),
        f"no more than {per_s:g} a second; arguments, priority, ETA and all else stay as they were",
        *([f"{retried:,} of them go on with the retries that they had"] if retried else []),
        *(
            [f"{linked:,} of them have callbacks, or a chain that goes on after them"]
            if linked
            else []
        ),
        *(
            [f"{parents:,} of them were sent by another task, which does not learn of the new one"]
            if parents
            else []
        ),
        *(
            [f"{fetched:,} of them had been fetched by a worker, and may have run in part"]
            if fetched
            else []
        ),
        *([was] if was else []),
        (
            "the old messages stay in their archive, and are not put back while the new ones count"
            " as sent"
        ),
    ]
    return send_change(archive, queue, [one.task for one in some], per_s, lines, of_archive=True)


def _write_down(run: Run, found: _Sorted) -> None:
    """Put every new message into the run's archives before the first is sent."""
    for queue, some in found.new.items():
        run.session.broker.archive_new(
            run.journal.directory / archive_name(queue), queue, _made(some, queue)
        )


def _made(some: list[_Meant], queue: str) -> Iterator[tuple[str, bytes]]:
    ledgers = {path: read(path) for path in {one.path for one in some}}
    for one in some:
        made = under_another_id(ledgers[one.path].messages[one.n].item, new_id(one.task.id), queue)
        if made is None:
            raise RunbookError(
                f"the message of {one.task.id} cannot be sent under another id",
                "leave it out with --id",
            )
        yield reason_for(one.task.id), made
