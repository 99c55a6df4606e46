"""Sends the canary task, which shows that the fleet works, and watches it to its end."""

import uuid
from collections.abc import Mapping
from contextlib import ExitStack

from runbooks.core.effects import BROKER, Change, RunTask
from runbooks.core.errors import RunbookError
from runbooks.core.model import NodeState, TaskState
from runbooks.core.outside import as_lines
from runbooks.core.reporter import Outcome
from runbooks.core.settings import Canary, TaskCall
from runbooks.core.wording import span
from runbooks.engine.context import Session
from runbooks.engine.run import Run
from runbooks.task_runs.expected import Expected
from runbooks.task_runs.results import WatchedBy, named_redis, watched_by, watching
from runbooks.task_runs.send import way_beside
from runbooks.task_runs.watch import Trace, Watched

_TRACEBACK_LINES = 5


def run_canary(run: Run, canary: Canary, nodes: Mapping[str, NodeState]) -> None:
    """Send the inventory's canary task and watch it to its end; it counts as a change.

    It is skipped if only workers outside --limit consume its queue and none of them answers: it
    would wait there. If its result cannot be read, it is not sent, which is a failure.
    """
    session = run.session
    recap = run.recap.at(BROKER)
    task_id = str(uuid.uuid4())
    change = Change(BROKER, "canary", canary.said, RunTask(canary.task, canary.queue, task_id))
    why = _why_unsent(session, canary.queue, nodes)
    if why:
        recap.skipped += 1
        session.reporter.change(change, Outcome.SKIPPED, why)
        return
    with ExitStack() as stack:
        try:
            by = _watched_by(session, canary, nodes)
            watch = stack.enter_context(watching(session, by, task_id))
        except RunbookError as error:
            recap.failed += 1
            session.reporter.change(change, Outcome.FAILED, as_lines(_not_sent(error)))
            return
        n = run.journal.intend(change)
        ended = session.broker.run_task(canary, task_id, watch, session.reporter.waiting)
        session.reporter.waiting("")
        watched = Watched(
            session,
            task_id,
            canary.task,
            canary.queue,
            expected=Expected(canary.result) if canary.expects_result else None,
            by_events=bool(by.nodes),
        )
        outcome, lines = _outcome(watched, ended, canary.timeout)
    if by.said:
        lines.append(by.said)
    detail = as_lines(lines)
    run.journal.finished(n, outcome, detail)
    if outcome is Outcome.CHANGED:
        recap.changed += 1
    else:
        recap.failed += 1
    session.reporter.change(change, outcome, detail)


def _not_sent(error: RunbookError) -> list[str]:
    first, *others = _without_prefix(error).splitlines()
    lines = [f"not sent: {first}", *others]
    if error.advice:
        lines.append(error.advice)
    return lines


def _without_prefix(error: RunbookError) -> str:
    return error.problem.removeprefix("nothing was sent: ")


def _watched_by(session: Session, canary: Canary, nodes: Mapping[str, NodeState]) -> WatchedBy:
    call = TaskCall(
        task=canary.task,
        kwargs=canary.kwargs,
        queue=canary.queue,
        priority=canary.priority,
    )
    try:
        way = way_beside(session, call, nodes)
    except RunbookError as error:
        if not named_redis(session.fleet):
            raise
        why = _without_prefix(error).splitlines()[0].rstrip(":")
        said = f"unknown whether the application keeps its results there: {why}"
        return WatchedBy(said=said)
    return watched_by(session.fleet, way)


def _outcome(watched: Watched, ended: TaskState, timeout_s: float) -> tuple[Outcome, list[str]]:
    """What became of it, with the lines to print; no event of any node is not a failure."""
    report = watched.judged(ended, watched.report(ended, ""))
    if ended.state == "SUCCESS":
        lines = [f"SUCCESS: {report.result}"]
        if report.unlike:
            lines.append(report.unlike)
        return (Outcome.FAILED if report.differs else Outcome.CHANGED), lines
    trace = watched.trace(ended) if ended.state == "PENDING" else Trace()
    if trace.lost and watched.by_events:
        line = f"sent; unknown whether it ran: no node reported it within {span(timeout_s)}, and"
        line += " no queue and no node has it any more"
        return Outcome.CHANGED, [line]
    state = report.state
    if not ended.ended and state != "RETRY":
        state = f"{state} after {span(timeout_s)}"
    lines = [f"{state}: {report.result}"]
    where = watched.where(ended, trace)
    if where:
        lines.append(where)
    lines.extend(report.traceback.strip().splitlines()[-_TRACEBACK_LINES:])
    lines.append(f"task {watched.id} was revoked, so no retry of it runs later")
    return Outcome.FAILED, lines


def _why_unsent(session: Session, queue: str, nodes: Mapping[str, NodeState]) -> str:
    for host in session.fleet.hosts:
        if any(queue in worker.queues for worker in host.settings.workers):
            return ""
    if any(queue in node.queues for node in nodes.values()):
        return ""
    return (
        f"not sent: no node that answers consumes {queue}; the inventory says that only hosts"
        " outside --limit do"
    )
