"""`inv run-task`: check a task's way, send it by the application's own routes, and watch it."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct
from msgspec.structs import replace

from runbooks.broker.nodes.task_watch import Watch
from runbooks.core.command import Command
from runbooks.core.effects import BROKER, Change, RunTask
from runbooks.core.errors import ExitCode, Interrupted, RunbookError, UsageError
from runbooks.core.model import TaskState
from runbooks.core.needs import Needs
from runbooks.core.outside import as_lines
from runbooks.core.redaction import keep_secrets_in, redact_value
from runbooks.core.reporter import Outcome, TaskReport
from runbooks.core.settings import TaskCall
from runbooks.engine.context import Session, closing_journal
from runbooks.engine.journal import Journal, RunRecord, new_run_id
from runbooks.task_runs.expected import Expected
from runbooks.task_runs.results import WatchedBy, look_once, past_watched_by, watched_by, watching
from runbooks.task_runs.send import Way, learn_secrets, look_at_way, require_whole, send, sent_in
from runbooks.task_runs.watch import Trace, Watched

_CODES = {"SUCCESS": ExitCode.OK, "FAILURE": ExitCode.FAILED, "REJECTED": ExitCode.FAILED}

SentIn = tuple[RunRecord, RunTask] | None
"""The run of this tool that sent a task, and the effect; None if it sent none."""


class _Errand(Struct, frozen=True):
    """Describes a task that is about to be sent."""

    session: Session
    call: TaskCall
    way: Way
    id: str


def run_task(session: Session, call: TaskCall, *, entry: str = "", dry_run: bool) -> ExitCode:
    """Send a task, or an `entry` of the schedule as beat would, and watch it.

    Exit code 0 if it succeeded, or was only to be sent; 2 if it failed, or its result is not as
    expected; 1 if it was revoked, has not ended in time, or its result is unknown. Raises
    RunbookError, before anything is sent, if a link of its way is broken or its result could not be
    read.
    """
    keep_secrets_in({"args": call.args, "kwargs": call.kwargs})
    way = look_at_way(session, call, entry)
    found = {"task": way.found.task, "args": way.found.args, "kwargs": way.found.kwargs}
    call = call.model_copy(update=found)
    keep_secrets_in({"args": call.args, "kwargs": call.kwargs})
    require_whole(session, call, way)
    with _nothing_sent():
        by = watched_by(session.fleet, way)
    if by.said and call.mode == "sync":
        session.reporter.message(f"{by.said[0].upper()}{by.said[1:]}.")
    if dry_run:
        what = f"{call.task} to {way.found.queue}, consumed by {', '.join(way.consumers)}"
        session.reporter.message(f"Would send {what}.", "Dry run: nothing was sent.")
        return ExitCode.OK
    errand = _Errand(session, call, way, str(uuid.uuid4()))
    if call.mode == "sync":
        return _send_and_watch(errand, by)
    journal = session.begin(new_run_id(session.options.state_directory))
    with closing_journal(journal):
        _send(errand, journal)
        journal.end("ok", ExitCode.OK)
    report = TaskReport(errand.id, "SENT", call.task, way.found.queue, _look(errand.id))
    session.reporter.task(report)
    return ExitCode.OK


@contextmanager
def _nothing_sent() -> Iterator[None]:
    try:
        yield
    except RunbookError as error:
        raise type(error)(f"nothing was sent: {error.problem}", error.advice) from None


def _send_and_watch(errand: _Errand, by: WatchedBy) -> ExitCode:
    """Start to watch before sending, because workers report each event once."""
    session = errand.session
    call = errand.call
    found = errand.way.found
    watched = Watched(
        session,
        errand.id,
        call.task,
        found.queue,
        found.max_retries,
        expected=Expected(call.result) if call.expects_result else None,
        by_events=bool(by.nodes),
    )
    with ExitStack() as stack:
        with _nothing_sent():
            watch = stack.enter_context(watching(session, by, errand.id))
        journal = session.begin(new_run_id(session.options.state_directory))
        with closing_journal(journal):
            n = _send(errand, journal, by.nodes)
            session.reporter.message(f"Sent to {found.queue}; {_look(errand.id)}")
            report = _to_its_end(watched, watch, call.timeout)
            code = _code(report)
            _write_end(journal, n, report, code)
    session.reporter.task(report)
    return code


def _write_end(journal: Journal, n: int, report: TaskReport, code: ExitCode) -> None:
    lines = [f"sent; {report.note}"]
    if report.ended:
        lines = [f"{report.state}: {report.result}"]
    if report.unlike:
        lines.append(report.unlike)
    if code == ExitCode.FAILED:
        journal.finished(n, Outcome.FAILED, as_lines(lines))
        journal.end("failed", code)
    else:
        journal.finished(n, Outcome.CHANGED, as_lines(lines))
        journal.end("ok", code)


def _code(report: TaskReport) -> ExitCode:
    if report.differs:
        return ExitCode.FAILED
    if report.differs is None:
        return ExitCode.FINDINGS
    return _CODES.get(report.state, ExitCode.FINDINGS)


def _to_its_end(watched: Watched, watch: Watch, timeout_s: float) -> TaskReport:
    try:
        return watched.to_its_end(watch, timeout_s)
    except KeyboardInterrupt:
        problem = "no longer watching; the task goes on"
        raise Interrupted(problem, _look(watched.id)) from None


def _send(errand: _Errand, journal: Journal, heard: Sequence[str] = ()) -> int:
    """Send a task, and write that down before and after; returns its number in the journal.

    `heard` are the nodes whose events were switched on.
    """
    call = errand.call
    queue = errand.way.found.queue
    detail = json.dumps(redact_value({"args": call.args, "kwargs": call.kwargs}))
    if heard:
        detail += f"\ntask events are on at {', '.join(heard)}; if inv is killed, they stay on"
        detail += " until these nodes restart"
    effect = RunTask(call.task, queue, errand.id)
    n = journal.intend(
        Change(BROKER, "task", f"send {call.task} to {queue}", effect, detail=detail)
    )
    advice = f"see whether it was sent: {Command('run-task', '--status', errand.id)}"
    try:
        send(errand.session, call, errand.way, errand.id)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while sending", advice) from None
    except RunbookError as error:
        problem = f"it may have been sent nevertheless: {error.problem}"
        journal.finished(n, Outcome.FAILED, problem)
        raise type(error)(error.problem, advice) from None
    journal.finished(n, Outcome.CHANGED, "sent")
    return n


def _look(task_id: str) -> str:
    return f"see its state: {Command('run-task', '--status', task_id)}"


def task_status(session: Session, task_id: str, *, watch_on: bool, timeout_s: float) -> ExitCode:
    """Show a task's state from the result backend, the queues and the nodes.

    With `watch_on` it is watched to its end. The exit codes are those of `run_task`. Raises
    UsageError if there is no trace of it.
    """
    record = sent_in(session, task_id)
    watched = Watched(session, task_id, task="", queue="")
    if record:
        watched = replace(watched, task=record[1].task, queue=record[1].queue)
    ways = past_watched_by(session, *learn_secrets(session))
    seen, by = _first_answer(session, ways, task_id)
    report = watched.report(seen, "")
    if not seen.ended:
        trace = watched.trace(seen)
        if seen.state == "PENDING" and trace.lost:
            raise _no_trace(session, task_id, record, readable=bool(ways))
        if seen.state == "PENDING" and trace.holder and trace.holder.started_at:
            seen = replace(seen, state="STARTED")
        watched = replace(watched, task=watched.task or _name(trace))
        report = watched.report(seen, watched.where(seen, trace))
        if watch_on:
            with watching(session, by or WatchedBy(nodes=_all_nodes(session)), task_id) as watch:
                report = _to_its_end(watched, watch, timeout_s)
    session.reporter.task(report)
    return _code(report)


def _first_answer(
    session: Session,
    ways: Sequence[WatchedBy],
    task_id: str,
) -> tuple[TaskState, WatchedBy | None]:
    """The task's state and the first way that knows it, or else the last; None if there is none."""
    seen = TaskState("PENDING")
    by: WatchedBy | None = None
    for by in ways:
        seen = look_once(session, by, task_id)
        if seen.state != "PENDING":
            break
    return seen, by


def _name(trace: Trace) -> str:
    if trace.place:
        return trace.place.message.task
    if trace.holder:
        return trace.holder.task
    return ""


def _all_nodes(session: Session) -> Sequence[str]:
    broker = session.observe(Needs.NODES).broker
    assert broker is not None
    return sorted(node.name for node in broker.nodes.values())


def _no_trace(session: Session, task_id: str, record: SentIn, *, readable: bool) -> UsageError:
    asked = "no queue, no node and no result has it"
    if session.fleet.app.result_backend is None:
        asked = "no queue and no node has it; without celery_result_backend its end is unknown"
    elif not readable:
        asked = "no queue and no node has it, and no other process can read its result backend"
    if record:
        run, effect = record
        asked = f"run {run.id} sent it to {effect.queue}, but {asked}"
    return UsageError(
        f"no trace of task {task_id}: {asked}",
        "is the id right? results are kept for a day (result_expires); see"
        f" {Command('tail-logs', '--grep', task_id)}",
    )
