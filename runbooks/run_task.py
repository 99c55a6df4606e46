"""`inv run-task`: send a task through the application's own routes, once its way is seen to be
whole, and watch it.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

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
from runbooks.task_runs.watch import Watched

_CODES = {"SUCCESS": ExitCode.OK, "FAILURE": ExitCode.FAILED, "REJECTED": ExitCode.FAILED}


def run_task(session: Session, call: TaskCall, *, entry: str = "", dry_run: bool) -> ExitCode:
    """0 where it succeeded, or was only to be sent; 2 where it failed, or returned something else
    than was expected; 1 where it was revoked, has not ended in time, or nobody tells whether its
    result is as expected.

    With an `entry` of the schedule it is sent as beat would send that. Raises RunbookError, before
    anything is sent, where a link of its way is broken or its result could not be read.
    """
    keep_secrets_in({"args": call.args, "kwargs": call.kwargs})
    way = look_at_way(session, call, entry)
    call = call.model_copy(
        update={"task": way.found.task, "args": way.found.args, "kwargs": way.found.kwargs}
    )
    keep_secrets_in({"args": call.args, "kwargs": call.kwargs})
    require_whole(session, call, way)
    with _nothing_sent():
        by = watched_by(session.fleet, way)
    if by.said and call.mode == "sync":
        session.reporter.message(f"{by.said[0].upper()}{by.said[1:]}.")
    what = f"{call.task} to {way.found.queue}, consumed by {', '.join(way.consumers)}"
    if dry_run:
        session.reporter.message(f"Would send {what}.", "Dry run: nothing was sent.")
        return ExitCode.OK
    task_id = str(uuid.uuid4())
    if call.mode == "sync":
        return _send_and_watch(session, call, way, task_id, by)
    journal = session.begin(new_run_id(session.options.state_directory))
    with closing_journal(journal):
        _send(session, journal, call, way, task_id)
        journal.end("ok", ExitCode.OK)
    session.reporter.task(TaskReport(task_id, "SENT", call.task, way.found.queue, _look(task_id)))
    return ExitCode.OK


@contextmanager
def _nothing_sent() -> Iterator[None]:
    try:
        yield
    except RunbookError as error:
        raise type(error)(f"nothing was sent: {error.problem}", error.advice) from None


def _send_and_watch(
    session: Session, call: TaskCall, way: Way, task_id: str, by: WatchedBy
) -> ExitCode:
    """Watching begins before sending, for what the workers tell is told once."""
    expected = Expected(call.result) if call.expects_result else None
    watched = Watched(
        session,
        task_id,
        call.task,
        way.found.queue,
        way.found.max_retries,
        expected,
        by_events=bool(by.nodes),
    )
    with ExitStack() as stack:
        with _nothing_sent():
            watch = stack.enter_context(watching(session, by, task_id))
        journal = session.begin(new_run_id(session.options.state_directory))
        with closing_journal(journal):
            n = _send(session, journal, call, way, task_id, by.nodes)
            session.reporter.message(f"Sent to {way.found.queue}; {_look(task_id)}")
            report = _to_its_end(watched, watch, call.timeout)
            code = _code(report)
            outcome = Outcome.FAILED if code == ExitCode.FAILED else Outcome.CHANGED
            told = f"{report.state}: {report.result}" if report.ended else f"sent; {report.note}"
            journal.finished(n, outcome, as_lines(filter(None, (told, report.unlike))))
            journal.end("failed" if code == ExitCode.FAILED else "ok", code)
    session.reporter.task(report)
    return code


def _code(report: TaskReport) -> ExitCode:
    if report.differs:
        return ExitCode.FAILED
    return (
        ExitCode.FINDINGS if report.differs is None else _CODES.get(report.state, ExitCode.FINDINGS)
    )


def _to_its_end(watched: Watched, watch: Watch, timeout_s: float) -> TaskReport:
    try:
        return watched.to_its_end(watch, timeout_s)
    except KeyboardInterrupt:
        raise Interrupted("no longer watched; the task goes on", _look(watched.id)) from None


def _send(
    session: Session,
    journal: Journal,
    call: TaskCall,
    way: Way,
    task_id: str,
    heard: Sequence[str] = (),
) -> int:
    """Write it down, send it, write that down too; its number in the journal. `heard` are nodes
    whose events are on.
    """
    arguments = json.dumps(redact_value({"args": call.args, "kwargs": call.kwargs}))
    effect = RunTask(call.task, way.found.queue, task_id)
    if heard:
        arguments += (
            f"\ntask events are on at {', '.join(heard)}; where inv was killed, until these are"
            " restarted"
        )
    n = journal.intend(
        Change(BROKER, "task", f"send {call.task} to {way.found.queue}", effect, detail=arguments)
    )
    advice = f"whether it was sent all the same: {Command('run-task', '--status', task_id)}"
    try:
        send(session, call, way, task_id)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while it was being sent", advice) from None
    except RunbookError as error:
        journal.finished(n, Outcome.FAILED, f"it may have been sent all the same: {error.problem}")
        raise type(error)(error.problem, advice) from None
    journal.finished(n, Outcome.CHANGED, "sent")
    return n


def _look(task_id: str) -> str:
    return f"to look at it again: {Command('run-task', '--status', task_id)}"


def task_status(session: Session, task_id: str, *, watch_on: bool, timeout_s: float) -> ExitCode:
    """How a task stands, asked of the result backend, the queues and the nodes; the exit codes are
    `run_task`'s.

    With `watch_on` it is watched to its end. Raises UsageError where there is no trace of it.
    """
    record = sent_in(session, task_id)
    queue = record[1].queue if record else ""
    ways = past_watched_by(session, *learn_secrets(session))
    watched = Watched(session, task_id, record[1].task if record else "", queue)
    seen, by = TaskState("PENDING"), WatchedBy()
    for by in ways:
        if (seen := look_once(session, by, task_id)).state != "PENDING":
            break
    report = watched.report(seen, "")
    if not seen.ended:
        trace = watched.trace(seen)
        if seen.state == "PENDING" and trace.lost:
            raise _no_trace(session, task_id, record, readable=bool(ways))
        if trace.holder and trace.holder.started_at and seen.state == "PENDING":
            seen = replace(seen, state="STARTED")
        known = (
            trace.place.message.task if trace.place else trace.holder.task if trace.holder else ""
        )
        watched = replace(watched, task=watched.task or known)
        report = watched.report(seen, watched.where(seen, trace))
        if watch_on:
            by = by if ways else WatchedBy(nodes=_all_nodes(session))
            with watching(session, by, task_id) as watch:
                report = _to_its_end(watched, watch, timeout_s)
    session.reporter.task(report)
    return _code(report)


def _all_nodes(session: Session) -> Sequence[str]:
    broker = session.observe(Needs.NODES).broker
    assert broker is not None
    return sorted(node.name for node in broker.nodes.values())


def _no_trace(
    session: Session, task_id: str, record: tuple[RunRecord, RunTask] | None, *, readable: bool
) -> UsageError:
    known = f"run {record[0].id} sent it to {record[1].queue}, but there" if record else "there"
    asked = "no result, no message and no node that has it"
    if session.fleet.app.result_backend is None:
        asked = (
            "no message and no node that has it, and no celery_result_backend to ask how it ended"
        )
    elif not readable:
        asked = (
            "no message and no node that has it, and its result backend keeps nothing for others to"
            " read"
        )
    return UsageError(
        f"no trace of task {task_id}: {known} is {asked}",
        "is the id right? results are kept for a day (result_expires); see"
        f" {Command('tail-logs', '--grep', task_id)}",
    )
