"""`inv archive.list`, `archive.show`, `archive.verify` and `archive.restore`: what was taken out of
queues.

They read the archives in the folders of the runs. Restoring is a run of its own, which can be
undone.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from msgspec.structs import replace

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

_SHOWN = 50


def list_archives(
    reporter: Reporter, state_directory: Path, open_broker: "Callable[[], Broker]"
) -> ExitCode:
    """Every archive, oldest first: how many messages it holds, why they were taken, and whether
    Redis agrees.
    """
    rows = []
    runs = [record for record in list_runs(state_directory) if archives_in(record.directory)]
    broker = _broker(reporter, open_broker) if runs else None
    for record in runs:
        for path in archives_in(record.directory):
            ledger = _read(reporter, path)
            fates = Counter(ledger.fates[n] for n in ledger.messages)
            reasons = Counter(
                ledger.lots[n].reason for n in ledger.messages if ledger.fates[n] is not Fate.QUEUED
            )
            tasks = Counter(row(m, ledger, "")["task"] for m in ledger.messages.values())
            rows.append(
                {
                    "run": record.id,
                    "queue": queue_of(path),
                    "in it": fates[Fate.TAKEN],
                    "put back": fates[Fate.RESTORED],
                    "moved": fates[Fate.MOVED],
                    "Redis now": _agrees(broker, record, ledger),
                    "why": "; ".join(f"{count:,} × {reason}" for reason, count in reasons.items()),
                    "tasks": "; ".join(
                        f"{count:,} × {task or 'unread'}" for task, count in tasks.items()
                    ),
                }
            )
    reporter.table("archives", rows)
    return ExitCode.OK


def _broker(reporter: Reporter, open_broker: "Callable[[], Broker]") -> "Broker | None":
    """The inventory's broker; None, which is told, where it cannot be looked at."""
    try:
        broker = open_broker()
        broker.reach()
    except RunbookError as error:
        reporter.warning(f"Redis was not looked at: {error.problem}", error.advice)
        return None
    return broker


def _agrees(broker: "Broker | None", record: RunRecord, ledger: Ledger) -> str:
    if broker is None:
        return "not looked at"
    if record.broker != broker.name:
        return f"not looked at: it is {record.broker}'s"
    if broker.knows_last_step(ledger):
        return "has its last step"
    return f"no record of its last step: {Command('archive.show', record.id)}"


def show_archive(
    reporter: Reporter,
    state_directory: Path,
    run: str,
    rule: Rule | None,
    open_broker: "Callable[[], Broker]",
    *,
    every: bool,
) -> ExitCode:
    """The messages of a run's archives that the rule means; a terminal is shown the first of them.

    Where Redis has no record of a run's last step, each is looked for there.
    """
    record = find_archives(state_directory, run)
    broker = _broker(reporter, open_broker)
    if broker and broker.name != record.broker:
        reporter.message(
            f"note: Redis was not looked at, for they came from {record.broker}, not {broker.name}"
        )
        broker = None
    found = []
    for path, ledger in archives_of(reporter, record, rule):
        differs, note = broker.difference(path) if broker else (Rewound(), "")
        if note:
            reporter.warning(
                f"{path.name}: {note.replace('RUN', record.id)}",
                "look at the queue before you restore it",
            )
        here, missing = frozenset(differs.here), frozenset(differs.missing)
        for message in out_of_queue(ledger, rule):
            stands = True if message.n in here else False if message.n in missing else None
            found.append({**row(message, ledger, queue_of(path)), "stands": stands})
    if every:
        reporter.table("archived", found)
        return ExitCode.OK
    reporter.table("archived", [_brief(entry) for entry in found[:_SHOWN]])
    if len(found) > _SHOWN:
        reporter.message(
            f"{len(found) - _SHOWN:,} more: narrow it with flags, or take all of them with --json"
        )
    return ExitCode.OK


def _brief(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    eta = "" if entry["eta_at"] is None else ago(time.time() - entry["eta_at"])
    state = entry["state"] + _STANDS[entry["stands"]]
    return {
        "state": state, "queue": entry["queue"], "id": entry["id"] or "", "task": entry["task"] or "unread",
        "retries": entry["retries"] or 0, "ETA": eta, "args": entry["args"], "reason": entry["reason"],
    }  # fmt: skip


_STANDS = {None: "", True: ", but stands in Redis", False: ", but stands nowhere"}


def verify_archive(reporter: Reporter, state_directory: Path, run: str) -> ExitCode:
    """Whether every message of a run's archives is as it was taken, and what a killed run has left
    open.
    """
    checks = []
    for path in archives_in(find_archives(state_directory, run).directory):
        reporter.waiting(f"reading {path.parent.name}/{path.name}")
        problems = verify(path)
        checks.append(Check(path.name, not problems, "; ".join(problems) or _sound(path)))
        reporter.waiting("")
    reporter.checks(checks)
    return ExitCode.OK if all(check.ok for check in checks) else ExitCode.FINDINGS


def _sound(path: Path) -> str:
    ledger = read(path)
    torn = ", a last line that a crash has torn" if path.stat().st_size > ledger.whole_bytes else ""
    batches = counted(len(ledger.unsettled), "batch", "batches")
    unsettled = f", {batches} of unknown fate (undo finds it out)" if ledger.unsettled else ""
    return (
        f"{counted(len(ledger.messages), 'message')}, every checksum right, in their"
        f" order{torn}{unsettled}"
    )


def restore_archive(
    session: Session,
    run: str,
    rule: Rule | None,
    place: str,
    *,
    malformed: bool,
    even_restored: bool = False,
) -> ExitCode:
    """Put the messages that the rule means back into their queues: a run of its own.

    With `even_restored` also what the archive calls put back or moved, and stands nowhere in Redis.
    """
    if place not in get_args(Place):
        raise UsageError(
            f"--place {place!r} is none of original, next, last",
            "leave it out for their old places",
        )
    record = find_archives(session.options.state_directory, run)
    session.require_consent_possible()
    if record.broker != session.broker.name:
        raise UsageError(
            f"they came from {record.broker}, not {session.broker.name}", "name the right inventory"
        )
    archives = list(archives_of(session.reporter, record, rule))
    earlier = sent_earlier(session)
    changes = []
    for path, ledger in archives:
        differs, note = session.broker.difference(path, always=even_restored)
        if note:
            session.reporter.warning(
                f"{path.name}: {note.replace('RUN', record.id)}",
                "look at the queue before you go on",
            )
        for n in differs.here if even_restored else (*differs.here, *differs.doubtful):
            ledger.fates[n] = Fate.RESTORED
        for n in differs.missing if even_restored else ():
            ledger.fates[n] = Fate.TAKEN
        sent = _sent_again(ledger, rule, earlier)
        if sent:
            runs = enumerated(sorted({earlier[new_id(task_id)].run for task_id in sent.values()}))
            session.reporter.warning(
                f"{counted(len(sent), 'message')} of {queue_of(path)} left out: sent again under"
                f" new ids by run {runs}",
                "undo that first",
            )
            for n in sent:
                ledger.fates[n] = Fate.RESTORED
        if change := _restore(path, ledger, rule, cast(Place, place), malformed, even_restored):
            changes.append(_without(change, tuple(sent.values())))
    if not changes:
        session.reporter.message("Nothing to put back: none of these messages is in the archive.")
        return ExitCode.OK
    for note in _consumers(session, {queue_of(path) for path, _ in archives}):
        session.reporter.message(f"note: {note}")
    session.reporter.plan(changes, dry_run=session.options.dry_run)
    if session.options.dry_run:
        return ExitCode.OK
    session.ask(f"Put them back ({place})?")
    recap = Recap()
    with recorded(session, recap) as recording:
        for change, outcome, detail in perform(recording, changes):
            recap.at(BROKER).changed += outcome is Outcome.CHANGED
            session.reporter.change(change, outcome, detail)
        recording.journal.end("ok", ExitCode.OK)
        session.reporter.recap(recap.tallies, undo=recording.journal.run_id)
    return ExitCode.OK


def _sent_again(
    ledger: Ledger, rule: Rule | None, earlier: Mapping[str, Earlier]
) -> dict[int, str]:
    """The ids of the messages that were sent again, by n: put back, too, they would run twice."""
    taken = (
        message for message in out_of_queue(ledger, rule) if ledger.fates[message.n] is Fate.TAKEN
    )
    ids = {message.n: row(message, ledger, "")["id"] for message in taken} if earlier else {}
    return {
        n: one
        for n, one in ids.items()
        if one and (found := earlier.get(new_id(one))) and found.sent
    }


def _without(change: Change, ids: tuple[str, ...]) -> Change:
    assert isinstance(change.do, RestoreSelected)
    return replace(change, do=replace(change.do, without=ids))


def _consumers(session: Session, queues: set[str]) -> Iterator[str]:
    broker = session.observe(Needs.NODES).broker
    assert broker is not None
    for queue in sorted(queues):
        if names := sorted(node.name for node in broker.nodes.values() if queue in node.queues):
            yield f"{', '.join(names)} consumes {queue} and will run them at once"


def _restore(
    path: Path,
    ledger: Ledger,
    rule: Rule | None,
    place: Place,
    malformed: bool,
    even_restored: bool,
) -> Change | None:
    if ledger.problems:
        raise RunbookError(
            f"{path} is damaged: {ledger.problems[0]}",
            "put the file back from a backup, then run again",
        )
    back: list[Mapping[str, Any]] = []
    reasons, withheld = Counter[str](), 0
    for message in out_of_queue(ledger, rule):
        if ledger.fates[message.n] is Fate.TAKEN and message.malformed and not malformed:
            withheld += 1
        elif ledger.fates[message.n] is Fate.TAKEN:
            back.append(row(message, ledger, queue_of(path)))
            reasons[message.reason] += 1
    left = counted(withheld, "malformed stays", "malformed stay")
    held = f"; {left} in the archive (--with-malformed)" if withheld else ""
    if not back:
        return None
    token = uuid.uuid4().hex
    name = str(path.absolute())
    where = {"original": "into their places", "next": "to run next", "last": "to run last"}[place]
    return Change(
        BROKER,
        "archive",
        f"put {counted(len(back), 'message')} back into {queue_of(path)}, {where}{held}",
        RestoreSelected(name, text(rule) if rule else "", place, malformed, token, even_restored),
        RecallMessages(name, token),
        as_lines(f"{count:,} × {reason}" for reason, count in reasons.items()),
        tuple(back),
        len(back),
    )


def archives_of(
    reporter: Reporter, record: RunRecord, rule: Rule | None
) -> Iterator[tuple[Path, Ledger]]:
    """The archives of a run's queues that the rule means, read."""
    for path in archives_in(record.directory):
        if rule is None or fits(rule.queue, queue_of(path)):
            yield path, _read(reporter, path)


def _read(reporter: Reporter, path: Path) -> Ledger:
    """Of many messages this takes its time."""
    reporter.waiting(f"reading {path.parent.name}/{path.name}")
    try:
        return read(path)
    finally:
        reporter.waiting("")


def out_of_queue(ledger: Ledger, rule: Rule | None) -> Iterator[Archived]:
    """The messages that the rule means, without those that were archived and left in their queue."""
    found = chosen(ledger, text(rule) if rule else "", time.time())
    return (message for message in found if ledger.fates[message.n] is not Fate.QUEUED)


def find_archives(state_directory: Path, run: str) -> RunRecord:
    """The run; `last` is the newest that has an archive. Raises UsageError where it has none."""
    if run == "last":
        with_archive = [
            record.id for record in list_runs(state_directory) if archives_in(record.directory)
        ]
        run = with_archive[-1] if with_archive else run
    record = find_run(state_directory, run)
    if not archives_in(record.directory):
        raise UsageError(
            f"run {record.id} has taken no messages out",
            f"see {Command('archive.list')} for those that did",
        )
    return record
