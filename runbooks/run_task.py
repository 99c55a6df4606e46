"""`inv run-task`: send a task through the application's own routes, once its way is seen to be whole, and watch it."""

import json
import uuid
from collections.abc import Sequence

from msgspec.structs import replace

from runbooks.broker.nodes.task_watch import Watch
from runbooks.core.command import Command
from runbooks.core.effects import BROKER, Change, RunTask
from runbooks.core.errors import ExitCode, Interrupted, RunbookError, UsageError
from runbooks.core.model import TaskState
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome, TaskReport
from runbooks.core.settings import TaskCall
from runbooks.engine.context import Session, closing_journal
from runbooks.engine.journal import Journal, RunRecord, new_run_id
from runbooks.hosts.facts import redact_value
from runbooks.task_runs.send import Way, look_at_way, require_whole, secrets_of, send, sent_in
from runbooks.task_runs.watch import Watched

_CODES = {"SUCCESS": ExitCode.OK, "FAILURE": ExitCode.FAILED, "REJECTED": ExitCode.FAILED}


def run_task(session: Session, call: TaskCall, *, dry_run: bool) -> ExitCode:
    """0 where it succeeded, or was only to be sent; 2 where it failed; 1 where it was revoked or has not ended in time.

    Raises RunbookError, before anything is sent, where a link of its way is broken.
    """
    way = look_at_way(session, call)
    require_whole(session, call, way)
    what = f"{call.task} to {way.found.queue}, consumed by {', '.join(way.consumers)}"
    if dry_run:
        session.reporter.message(f"Would send {what}.\nDry run: nothing was sent.")
        return ExitCode.OK
    watched = Watched(
        session, str(uuid.uuid4()), call.task, way.found.queue, way.secrets, max_retries=way.found.max_retries
    )
    journal = session.begin(new_run_id(session.options.state_directory))
    with closing_journal(journal):
        if call.mode == "async":
            _send(session, journal, call, way, watched.id)
            report, code = (
                TaskReport(watched.id, "SENT", call.task, way.found.queue, _look(watched.id)),
                ExitCode.OK,
            )
        else:
            report = _send_and_watch(session, journal, call, way, watched)
            code = _CODES.get(report.state, ExitCode.FINDINGS)
        journal.end("failed" if code == ExitCode.FAILED else "ok", code)
    session.reporter.task(report)
    return code


def _send_and_watch(session: Session, journal: Journal, call: TaskCall, way: Way, watched: Watched) -> TaskReport:
    """Watching begins before sending, for what the workers tell is told once."""
    nodes = _event_nodes(session, way)
    with session.broker.watch(watched.id, nodes) as watch:
        n = _send(session, journal, call, way, watched.id, nodes)
        session.reporter.message(f"Sent to {way.found.queue}; {_look(watched.id)}")
        report = _to_its_end(watched, watch, call.timeout)
    outcome = Outcome.FAILED if _CODES.get(report.state) == ExitCode.FAILED else Outcome.CHANGED
    journal.finished(n, outcome, f"{report.state}: {report.result}" if report.ended else f"sent; {report.note}")
    return report


def _to_its_end(watched: Watched, watch: Watch, timeout_s: float) -> TaskReport:
    try:
        return watched.to_its_end(watch, timeout_s)
    except KeyboardInterrupt:
        raise Interrupted("no longer watched; the task goes on", _look(watched.id)) from None


def _send(session: Session, journal: Journal, call: TaskCall, way: Way, task_id: str, heard: Sequence[str] = ()) -> int:
    """Write it down, send it, write that down too; its number in the journal. `heard` are nodes whose events are on."""
    arguments = json.dumps(redact_value({"args": call.args, "kwargs": call.kwargs}, way.secrets))
    effect = RunTask(call.task, way.found.queue, task_id)
    if heard:
        arguments += f"\ntask events are on at {', '.join(heard)}; where inv was killed, until these are restarted"
    n = journal.intend(Change(BROKER, "task", f"send {call.task} to {way.found.queue}", effect, detail=arguments))
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


def _event_nodes(session: Session, way: Way) -> Sequence[str]:
    """The nodes to be heard where no result can be read, after saying so; none where it can."""
    if session.broker.has_results and way.found.keeps_result:
        return ()
    why = "the task keeps no result" if session.broker.has_results else "the inventory names no celery_result_backend"
    session.reporter.message(f"{why[0].upper()}{why[1:]}: its workers' events are followed; they tell no progress.")
    return way.consumers


def task_status(session: Session, task_id: str, *, watch_on: bool, timeout_s: float) -> ExitCode:
    """How a task stands, asked of the result backend, the queues and the nodes; the exit codes are `run_task`'s.

    With `watch_on` it is watched to its end. Raises UsageError where there is no trace of it.
    """
    record = sent_in(session, task_id)
    queue = record[1].queue if record else ""
    watched = Watched(session, task_id, record[1].task if record else "", queue, secrets_of(session))
    seen = TaskState("PENDING")
    if session.broker.has_results:
        with session.broker.watch(task_id) as watch:
            seen = watch.look()
    report = watched.report(seen, "")
    if not seen.ended:
        trace = watched.trace(seen)
        if seen.state == "PENDING" and trace.lost:
            raise _no_trace(session, task_id, record)
        if trace.holder and trace.holder.started_at and seen.state == "PENDING":
            seen = replace(seen, state="STARTED")
        known = trace.place.message.task if trace.place else trace.holder.task if trace.holder else ""
        watched = replace(watched, task=watched.task or known)
        report = watched.report(seen, watched.where(seen, trace))
        if watch_on:
            nodes = () if session.broker.has_results else _all_nodes(session)
            with session.broker.watch(task_id, nodes) as watch:
                report = _to_its_end(watched, watch, timeout_s)
    session.reporter.task(report)
    return _CODES.get(report.state, ExitCode.FINDINGS)


def _all_nodes(session: Session) -> Sequence[str]:
    broker = session.observe(Needs.NODES).broker
    assert broker is not None
    return sorted(broker.nodes)


def _no_trace(session: Session, task_id: str, record: tuple[RunRecord, RunTask] | None) -> UsageError:
    known = f"run {record[0].id} sent it to {record[1].queue}, but there" if record else "there"
    asked = "no result, no message and no node that has it"
    if not session.broker.has_results:
        asked = "no message and no node that has it, and no celery_result_backend to ask how it ended"
    return UsageError(
        f"no trace of task {task_id}: {known} is {asked}",
        f"is the id right? results are kept for a day (result_expires); see {Command('tail-logs', '--grep', task_id)}",
    )
