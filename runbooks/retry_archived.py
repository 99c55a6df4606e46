"""`inv retry --archive RUN`: send archived tasks again, with the same message and a new id.

As with failures, the new id shows what was sent before, so a task is never sent twice. The old
message stays in its archive.
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
from runbooks.broker.messages.parse import (
    Malformed,
    Message,
    Unreadable,
    envelope_of,
    headers_of,
    parse,
)
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

_WHERE = {Fate.RESTORED: "restored to their queue", Fate.MOVED: "moved to another queue"}


class _Selected(Struct, frozen=True):
    """Describes a message to be sent again."""

    path: Path
    """Its archive."""
    n: int
    """Its number there."""
    task: Old
    retries: int
    is_linked: bool
    """Whether it has callbacks, or a chain that continues after it."""
    has_parent: bool
    was_fetched: bool


class _Sorted(Struct):
    """Holds the selected messages, sorted by what to do about them."""

    new: dict[str, list[_Selected]] = field(default_factory=lambda: defaultdict(list))
    """To be sent, by queue."""
    begun: dict[Path, list[_Selected]] = field(default_factory=lambda: defaultdict(list))
    """To be continued, by archive."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Skipped, by reason."""


def retry_archived(session: Session, run: str, rule: Rule | None, per_s: float) -> ExitCode:
    """Send archived messages again; exit code 2 if a selected one cannot be sent.

    Raises RunbookError for a damaged archive.
    """
    record = find_archives(session.options.state_directory, run)
    session.require_consent_possible()
    if record.broker != session.broker.name:
        raise UsageError(
            f"the messages came from {record.broker}, not {session.broker.name}",
            "name the right inventory",
        )
    if record.verb == RETRY:
        raise UsageError(
            f"run {record.id} itself sent tasks again",
            "to continue it, give its own command again",
        )
    snapshot = session.observe(Needs.NODES)
    session.require_alone(snapshot.other_run)
    assert snapshot.broker is not None
    look = _Look(session, snapshot.broker.nodes, snapshot.at)
    for path, ledger in archives_of(session.reporter, record, rule):
        look.at(path, ledger, rule)
    found = look.found
    recap = Recap()
    for why, count in found.left_out.most_common():
        session.reporter.warning(f"{counted(count, 'message')} skipped: {why}", "")
        if not why.endswith(_DONE):
            recap.at(BROKER).blocked += 1
    changes = [*_going_on(found, per_s), *_new(found, per_s)]

    def write_down(run: Run) -> None:
        _write_down(run, found)

    return one_by_one(session, changes, recap, "Send them again?", write_down)


class _Look:
    """Sorts the messages of archives by what to do about them."""

    def __init__(self, session: Session, nodes: Mapping[str, NodeState], now: float) -> None:
        self._session = session
        self._nodes = nodes
        self._now = now
        self._earlier: Mapping[str, Earlier] = sent_earlier(session)
        self.found = _Sorted()

    def at(self, path: Path, ledger: Ledger, rule: Rule | None) -> None:
        """Sort the messages of an archive that the rule selects."""
        if ledger.problems:
            raise RunbookError(
                f"{path} is damaged: {ledger.problems[0]}",
                "restore the file from a backup, then run again",
            )
        differs, note = self._session.broker.difference(path)
        if note:
            text = note.replace("RUN", path.parent.name)
            self._session.reporter.warning(f"{path.name}: {text}", "")
        in_redis = {*differs.here, *differs.doubtful}
        for message in out_of_queue(ledger, rule):
            look = parse(message.item)
            why = _why_not_taken(ledger, message, in_redis) or self._why_not(path, message, look)
            if why:
                self.found.left_out[why] += 1
                continue
            assert isinstance(look, Message)
            before = self._earlier.get(new_id(look.id))
            selected = _selected(path, message, look)
            if before:
                self.found.begun[before.archive].append(selected)
            else:
                self.found.new[queue_of(path)].append(selected)

    def _why_not(
        self,
        path: Path,
        message: Archived,
        look: Message | Malformed | Unreadable,
    ) -> str:
        """Why a message cannot be sent again, or not safely; "" if it can."""
        if not isinstance(look, Message):
            return "it is malformed, or its task is unknown"
        before = self._earlier.get(new_id(look.id))
        if before and before.sent:
            return f"sent again by run {before.run} {_DONE}"
        why = _not_safe(message.item, look, self._now)
        return why or self._not_consumed(look.task, queue_of(path))

    def _not_consumed(self, task: str, queue: str) -> str:
        consumers = [node for node in self._nodes.values() if queue in node.queues]
        if not consumers:
            return f"no node that answers consumes {queue}"
        if not all(task in node.registered for node in consumers):
            return f"a node that consumes {queue} does not register {task}, and would discard it"
        return ""


def _why_not_taken(ledger: Ledger, message: Archived, in_redis: set[int]) -> str:
    """Why a message does not count as archived; "" if it does."""
    fate = ledger.fates[message.n]
    if fate is not Fate.TAKEN:
        return f"{_WHERE[fate]} {_DONE}"
    if message.n in ledger.unsure:
        return "the run was killed, so it is unknown whether they left the queue"
    if message.n in in_redis:
        return "Redis went back in time: it is in its queue again, or may have run"
    return ""


def _not_safe(raw: bytes, look: Message, now: float) -> str:
    """Why a message itself forbids to send it again; "" if it does not."""
    if look.form.protocol != 2:
        return f"{look.task} has a message of protocol 1, with its id in the body"
    linked = links(raw)
    if linked is None:
        return (
            f"{look.task} has a body {unread(raw)}, so it is unknown whether a chord waits for it"
        )
    names, group = linked
    if group or "chord" in names:
        return f"{look.task} belongs to a group or chord, which would ignore the new task"
    if look.expires_at is not None and look.expires_at <= now:
        return f"{look.task} has expired, so a worker would discard it"
    return ""


def _selected(path: Path, message: Archived, look: Message) -> _Selected:
    names, _ = links(message.item) or ((), "")
    return _Selected(
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
        was = f"written by run {path.parent.name}, which did not send them, or was undone"
        yield _change(str(path.absolute()), queue_of(path), some, per_s, was)


def _change(archive: str, queue: str, some: list[_Selected], per_s: float, was: str) -> Change:
    kinds = Counter((one.task.task, one.task.why) for one in some).most_common()
    lines = [f"{n:,} × {task}, archived: {why}" for (task, why), n in kinds]
    lines.append(f"at most {per_s:g} a second; arguments, priority, ETA and all else are unchanged")
    lines.extend(_notes(some))
    if was:
        lines.append(was)
    lines.append(
        "the old messages stay in their archive, and cannot be restored while the new ones count as"
        " sent"
    )
    tasks = [one.task for one in some]
    return send_change(archive, queue, tasks, per_s, lines, of_archive=True)


def _notes(some: list[_Selected]) -> Iterator[str]:
    """What a plan says of the messages' past."""
    retried = sum(one.retries > 0 for one in some)
    linked = sum(one.is_linked for one in some)
    parents = sum(one.has_parent for one in some)
    fetched = sum(one.was_fetched for one in some)
    if retried:
        yield f"{retried:,} keep the number of retries that they had"
    if linked:
        yield f"{linked:,} have callbacks, or a chain that continues after them"
    if parents:
        yield f"{parents:,} were sent by another task, which does not know the new one"
    if fetched:
        yield f"{fetched:,} had been fetched by a worker, and may have run in part"


def _write_down(run: Run, found: _Sorted) -> None:
    """Put every new message into the run's archives before the first is sent."""
    for queue, some in found.new.items():
        path = run.journal.directory / archive_name(queue)
        run.session.broker.archive_new(path, queue, _messages(some, queue))


def _messages(some: list[_Selected], queue: str) -> Iterator[tuple[str, bytes]]:
    ledgers = {path: read(path) for path in {one.path for one in some}}
    for one in some:
        old = ledgers[one.path].messages[one.n].item
        message = under_another_id(old, new_id(one.task.id), queue)
        if message is None:
            raise RunbookError(
                f"the message of {one.task.id} cannot be sent under another id",
                "leave it out with --id",
            )
        yield reason_for(one.task.id), message
