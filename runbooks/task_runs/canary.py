"""The canary task: sent as the proof that the fleet works, and watched to its end."""

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


def run_canary(run: Run, canary: Canary, nodes: Mapping[str, NodeState]) -> None:
    """Send the inventory's canary task and follow it to its end; it counts as a change, for it did
    something.

    It is not sent where only workers outside --limit consume its queue and none of them answers: it
    would wait there. Nor where nobody could read what becomes of it, which is a failure.
    """
    session, recap = run.session, run.recap.at(BROKER)
    task_id = str(uuid.uuid4())
    change = Change(BROKER, "canary", canary.said, RunTask(canary.task, canary.queue, task_id))
    if why := _why_unsent(session, canary.queue, nodes):
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
        expected = Expected(canary.result) if canary.expects_result else None
        watched = Watched(
            session, task_id, canary.task, canary.queue, expected=expected, by_events=bool(by.nodes)
        )
        outcome, told = _outcome(watched, ended, canary.timeout)
    detail = as_lines([*told, *filter(None, (by.said,))])
    run.journal.finished(n, outcome, detail)
    recap.changed += outcome is Outcome.CHANGED
    recap.failed += outcome is Outcome.FAILED
    session.reporter.change(change, outcome, detail)


def _not_sent(error: RunbookError) -> list[str]:
    first, *others = _without_prefix(error).splitlines()
    return [f"not sent: {first}", *others, *filter(None, (error.advice,))]


def _without_prefix(error: RunbookError) -> str:
    return error.problem.removeprefix("nothing was sent: ")


def _watched_by(session: Session, canary: Canary, nodes: Mapping[str, NodeState]) -> WatchedBy:
    call = TaskCall(
        task=canary.task, kwargs=canary.kwargs, queue=canary.queue, priority=canary.priority
    )
    try:
        way = way_beside(session, call, nodes)
    except RunbookError as error:
        if not named_redis(session.fleet):
            raise
        why = _without_prefix(error).splitlines()[0].rstrip(":")
        return WatchedBy(
            said=f"whether the application keeps its results there is not known: {why}"
        )
    return watched_by(session.fleet, way)


def _outcome(watched: Watched, ended: TaskState, timeout_s: float) -> tuple[Outcome, list[str]]:
    """What became of it, and what there is to say. Where no node told anything of it, that is not
    known.
    """
    report = watched.judged(ended, watched.report(ended, ""))
    if ended.state == "SUCCESS":
        outcome = Outcome.FAILED if report.differs else Outcome.CHANGED
        return outcome, [f"SUCCESS: {report.result}", *filter(None, (report.unlike,))]
    trace = watched.trace(ended) if ended.state == "PENDING" else Trace()
    if trace.lost and watched.by_events:
        return Outcome.CHANGED, [
            f"sent; whether it ran is not known: no node told of it within {span(timeout_s)}, and"
            " no queue and no node has it any more"
        ]
    in_time = ended.ended or ended.state == "RETRY"
    told = f"{report.state}{'' if in_time else f' after {span(timeout_s)}'}: {report.result}"
    return Outcome.FAILED, [
        told,
        *filter(None, (watched.where(ended, trace),)),
        *report.traceback.strip().splitlines()[-5:],
        f"task {watched.id} was revoked, so that no retry of it runs later",
    ]


def _why_unsent(session: Session, queue: str, nodes: Mapping[str, NodeState]) -> str:
    inside = any(
        queue in worker.queues for host in session.fleet.hosts for worker in host.settings.workers
    )
    if inside or any(queue in node.queues for node in nodes.values()):
        return ""
    return (
        f"not sent: no node that answers consumes {queue}, and by the inventory only hosts outside"
        " --limit do"
    )
