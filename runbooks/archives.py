"""`inv archive.list`, `archive.show`, `archive.verify`, `archive.restore`: archived messages.

They read the archives in the runs' folders. Restoring is a separate run, which can be undone.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from runbooks.broker.archive.reader import Archived, Fate, Ledger, read, verify
from runbooks.broker.archive.search import archives_in, chosen, queue_of, row
from runbooks.broker.queues.reconcile import Rewound
from runbooks.core.command import Command
from runbooks.core.effects import BROKER, Change, RecallMessages, RestoreSelected
from runbooks.core.errors import ExitCode, RunbookError, UsageError
from runbooks.core.model import Rule
from runbooks.core.needs import Needs
from runbooks.core.outside import as_lines
from runbooks.core.reporter import Check, Outcome, Reporter
from runbooks.core.rules import fits, text
from runbooks.core.wording import ago, counted, enumerated
from runbooks.engine.context import Session
from runbooks.engine.journal import RunRecord, find_run, list_runs
from runbooks.engine.perform import perform
from runbooks.engine.recap import Recap
from runbooks.engine.run import recorded
from runbooks.engine.sent_again import Earlier, new_id, sent_earlier

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker

Place = Literal["original", "next", "last"]
OpenBroker = Callable[[], "Broker"]

_SHOWN = 50
_STANDS = {None: "", True: ", but in Redis", False: ", but not in Redis"}
_WHERE = {"original": "in their old places", "next": "to run next", "last": "to run last"}


def list_archives(reporter: Reporter, state_directory: Path, open_broker: OpenBroker) -> ExitCode:
    """List every archive, oldest first: its messages, the reasons, and whether Redis agrees."""
    rows = []
    runs = [record for record in list_runs(state_directory) if archives_in(record.directory)]
    broker = _broker(reporter, open_broker) if runs else None
    for record in runs:
        for path in archives_in(record.directory):
            ledger = _read(reporter, path)
            fates = Counter(ledger.fates[n] for n in ledger.messages)
            entry = {
                "run": record.id,
                "queue": queue_of(path),
                "in it": fates[Fate.TAKEN],
                "put back": fates[Fate.RESTORED],
                "moved": fates[Fate.MOVED],
                "Redis now": _agrees(broker, record, ledger),
                "why": "; ".join(_reasons(ledger)),
                "tasks": "; ".join(_tasks(ledger)),
            }
            rows.append(entry)
    reporter.table("archives", rows)
    return ExitCode.OK


def _reasons(ledger: Ledger) -> list[str]:
    reasons: Counter[str] = Counter()
    for n in ledger.messages:
        if ledger.fates[n] is not Fate.QUEUED:
            reasons[ledger.lots[n].reason] += 1
    return [f"{count:,} × {reason}" for reason, count in reasons.items()]


def _tasks(ledger: Ledger) -> list[str]:
    tasks = Counter(row(message, ledger, "")["task"] for message in ledger.messages.values())
    return [f"{count:,} × {task or 'unread'}" for task, count in tasks.items()]


def _broker(reporter: Reporter, open_broker: OpenBroker) -> "Broker | None":
    """The inventory's broker; None, with a warning, if it cannot be reached."""
    try:
        broker = open_broker()
        broker.reach()
    except RunbookError as error:
        reporter.warning(f"Redis was not checked: {error.problem}", error.advice)
        return None
    return broker


def _agrees(broker: "Broker | None", record: RunRecord, ledger: Ledger) -> str:
    if broker is None:
        return "not checked"
    if record.broker != broker.name:
        return f"not checked: the messages came from {record.broker}"
    if broker.knows_last_step(ledger):
        return "has its last step"
    return f"no record of its last step: {Command('archive.show', record.id)}"


def show_archive(
    reporter: Reporter,
    state_directory: Path,
    run: str,
    rule: Rule | None,
    open_broker: OpenBroker,
    *,
    every: bool,
) -> ExitCode:
    """Show the messages of a run's archives that the rule selects; not `every`: the first of them.

    If Redis has no record of a run's last step, each message is looked for there.
    """
    record = find_archives(state_directory, run)
    broker = _broker(reporter, open_broker)
    if broker and broker.name != record.broker:
        reporter.message(
            f"note: Redis was not checked: the messages came from {record.broker}, not"
            f" {broker.name}"
        )
        broker = None
    found: list[Mapping[str, Any]] = []
    for path, ledger in archives_of(reporter, record, rule):
        differs = Rewound()
        if broker:
            differs, note = broker.difference(path)
            if note:
                text_of_note = f"{path.name}: {note.replace('RUN', record.id)}"
                reporter.warning(text_of_note, "check the queue before you restore it")
        found.extend(_entries(path, ledger, rule, differs))
    if every:
        reporter.table("archived", found)
        return ExitCode.OK
    reporter.table("archived", [_brief(entry) for entry in found[:_SHOWN]])
    if len(found) > _SHOWN:
        reporter.message(
            f"{len(found) - _SHOWN:,} more: select fewer with flags, or show all with --json"
        )
    return ExitCode.OK


def _entries(
    path: Path,
    ledger: Ledger,
    rule: Rule | None,
    differs: Rewound,
) -> Iterator[Mapping[str, Any]]:
    """The archive's messages; `stands` is whether one is in Redis against what the archive says."""
    stands = dict.fromkeys(differs.missing, False)
    stands.update(dict.fromkeys(differs.here, True))
    for message in out_of_queue(ledger, rule):
        yield {**row(message, ledger, queue_of(path)), "stands": stands.get(message.n)}


def _brief(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    eta = ""
    if entry["eta_at"] is not None:
        eta = ago(time.time() - entry["eta_at"])
    return {
        "state": entry["state"] + _STANDS[entry["stands"]],
        "queue": entry["queue"],
        "id": entry["id"] or "",
        "task": entry["task"] or "unread",
        "retries": entry["retries"] or 0,
        "ETA": eta,
        "args": entry["args"],
        "reason": entry["reason"],
    }


def verify_archive(reporter: Reporter, state_directory: Path, run: str) -> ExitCode:
    """Check that a run's archived messages are unchanged, and what a killed run left open."""
    checks = []
    for path in archives_in(find_archives(state_directory, run).directory):
        reporter.waiting(f"reading {path.parent.name}/{path.name}")
        problems = verify(path)
        checks.append(Check(path.name, not problems, "; ".join(problems) or _sound(path)))
        reporter.waiting("")
    reporter.checks(checks)
    if all(check.ok for check in checks):
        return ExitCode.OK
    return ExitCode.FINDINGS


def _sound(path: Path) -> str:
    ledger = read(path)
    text = f"{counted(len(ledger.messages), 'message')}, every checksum right, in order"
    if path.stat().st_size > ledger.whole_bytes:
        text += ", the last line cut off by a crash"
    if ledger.unsettled:
        batches = counted(len(ledger.unsettled), "batch", "batches")
        text += f", {batches} of unknown fate (undo finds it out)"
    return text


def restore_archive(
    session: Session,
    run: str,
    rule: Rule | None,
    place: str,
    *,
    malformed: bool,
    even_restored: bool = False,
) -> ExitCode:
    """Restore the messages that the rule selects to their queues, as a separate run.

    With `even_restored`, also messages that the archive calls restored or moved, but that are not
    in Redis.
    """
    if place not in get_args(Place):
        raise UsageError(
            f"--place expects original, next or last, got {place!r}",
            "leave it out for their old places",
        )
    record = find_archives(session.options.state_directory, run)
    session.require_consent_possible()
    if record.broker != session.broker.name:
        raise UsageError(
            f"the messages came from {record.broker}, not {session.broker.name}",
            "name the right inventory",
        )
    archives = list(archives_of(session.reporter, record, rule))
    restore = _Restore(session, rule, cast(Place, place), malformed, even_restored)
    changes: list[Change] = []
    for path, ledger in archives:
        change = restore.change(path, ledger)
        if change:
            changes.append(change)
    if not changes:
        session.reporter.message("Nothing to restore: none of these messages is in the archive.")
        return ExitCode.OK
    for note in _consumers(session, {queue_of(path) for path, _ in archives}):
        session.reporter.message(f"note: {note}")
    session.reporter.plan(changes, dry_run=session.options.dry_run)
    if session.options.dry_run:
        return ExitCode.OK
    session.ask(f"Restore them ({place})?")
    recap = Recap()
    with recorded(session, recap) as recording:
        for change, outcome, detail in perform(recording, changes):
            if outcome is Outcome.CHANGED:
                recap.at(BROKER).changed += 1
            session.reporter.change(change, outcome, detail)
        recording.journal.end("ok", ExitCode.OK)
        session.reporter.recap(recap.tallies, undo=recording.journal.run_id)
    return ExitCode.OK


class _Restore:
    """Plans what one run restores."""

    def __init__(
        self,
        session: Session,
        rule: Rule | None,
        place: Place,
        malformed: bool,
        even_restored: bool,
    ) -> None:
        self._session = session
        self._rule = rule
        self._place = place
        self._malformed = malformed
        self._even_restored = even_restored
        self._earlier: Mapping[str, Earlier] = sent_earlier(session)

    def change(self, path: Path, ledger: Ledger) -> Change | None:
        """Return the change that restores an archive's messages; None if there are none.

        Raises RunbookError for a damaged archive.
        """
        self._agree_with_redis(path, ledger)
        sent = self._sent_again(ledger)
        if sent:
            runs = enumerated(sorted({self._earlier[new_id(one)].run for one in sent.values()}))
            self._session.reporter.warning(
                f"{counted(len(sent), 'message')} of {queue_of(path)} skipped: sent again under new"
                f" ids by run {runs}",
                "undo that run first",
            )
            for n in sent:
                ledger.fates[n] = Fate.RESTORED
        return self._change(path, ledger, tuple(sent.values()))

    def _agree_with_redis(self, path: Path, ledger: Ledger) -> None:
        """Correct what the archive says of messages by what Redis has."""
        differs, note = self._session.broker.difference(path, always=self._even_restored)
        if note:
            self._session.reporter.warning(
                f"{path.name}: {note.replace('RUN', path.parent.name)}",
                "check the queue before you continue",
            )
        for n in differs.here:
            ledger.fates[n] = Fate.RESTORED
        if self._even_restored:
            for n in differs.missing:
                ledger.fates[n] = Fate.TAKEN
        else:
            for n in differs.doubtful:
                ledger.fates[n] = Fate.RESTORED

    def _sent_again(self, ledger: Ledger) -> dict[int, str]:
        """The ids of messages that were sent again, by n: if restored, they would run twice."""
        sent: dict[int, str] = {}
        if not self._earlier:
            return sent
        for message in out_of_queue(ledger, self._rule):
            if ledger.fates[message.n] is not Fate.TAKEN:
                continue
            task_id = row(message, ledger, "")["id"]
            before = self._earlier.get(new_id(task_id)) if task_id else None
            if before and before.sent:
                sent[message.n] = task_id
        return sent

    def _change(self, path: Path, ledger: Ledger, without: tuple[str, ...]) -> Change | None:
        if ledger.problems:
            raise RunbookError(
                f"{path} is damaged: {ledger.problems[0]}",
                "restore the file from a backup, then run again",
            )
        back: list[Mapping[str, Any]] = []
        reasons: Counter[str] = Counter()
        withheld = 0
        for message in out_of_queue(ledger, self._rule):
            if ledger.fates[message.n] is not Fate.TAKEN:
                continue
            if message.malformed and not self._malformed:
                withheld += 1
            else:
                back.append(row(message, ledger, queue_of(path)))
                reasons[message.reason] += 1
        if not back:
            return None
        where = _WHERE[self._place]
        summary = f"restore {counted(len(back), 'message')} to {queue_of(path)}, {where}"
        if withheld:
            stay = counted(withheld, "malformed message stays", "malformed messages stay")
            summary += f"; {stay} in the archive (--with-malformed)"
        token = uuid.uuid4().hex
        name = str(path.absolute())
        return Change(
            BROKER,
            "archive",
            summary,
            RestoreSelected(
                name,
                text(self._rule) if self._rule else "",
                self._place,
                self._malformed,
                token,
                self._even_restored,
                without=without,
            ),
            RecallMessages(name, token),
            as_lines(f"{count:,} × {reason}" for reason, count in reasons.items()),
            tuple(back),
            len(back),
        )


def _consumers(session: Session, queues: set[str]) -> Iterator[str]:
    broker = session.observe(Needs.NODES).broker
    assert broker is not None
    for queue in sorted(queues):
        names = sorted(node.name for node in broker.nodes.values() if queue in node.queues)
        if names:
            yield f"{', '.join(names)} consumes {queue} and will run them at once"


def archives_of(
    reporter: Reporter, record: RunRecord, rule: Rule | None
) -> Iterator[tuple[Path, Ledger]]:
    """Read a run's archives of the queues that the rule selects."""
    for path in archives_in(record.directory):
        if rule is None or fits(rule.queue, queue_of(path)):
            yield path, _read(reporter, path)


def _read(reporter: Reporter, path: Path) -> Ledger:
    """Read an archive, which takes a while if it is large."""
    reporter.waiting(f"reading {path.parent.name}/{path.name}")
    try:
        return read(path)
    finally:
        reporter.waiting("")


def out_of_queue(ledger: Ledger, rule: Rule | None) -> Iterator[Archived]:
    """Return the messages that the rule selects, except those that stayed in their queue."""
    found = chosen(ledger, text(rule) if rule else "", time.time())
    return (message for message in found if ledger.fates[message.n] is not Fate.QUEUED)


def find_archives(state_directory: Path, run: str) -> RunRecord:
    """Return the run; `last` is the newest with an archive. Raises UsageError if it has none."""
    if run == "last":
        for record in list_runs(state_directory):
            if archives_in(record.directory):
                run = record.id
    record = find_run(state_directory, run)
    if not archives_in(record.directory):
        raise UsageError(
            f"run {record.id} has archived no messages",
            f"see {Command('archive.list')} for the runs that have",
        )
    return record
