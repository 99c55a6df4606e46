"""`inv task ID`: where one task is now, and what became of it; changes nothing."""

import time
from collections.abc import Iterator, Sequence

from runbooks.broker.archive.reader import ArchiveError, read
from runbooks.broker.archive.search import archives_in, chosen, queue_of, row
from runbooks.core.errors import ExitCode, RunbookError
from runbooks.core.model import MessagePlace, NodeState, Rule, TaskState
from runbooks.core.needs import Needs
from runbooks.core.redaction import redact, redact_value
from runbooks.core.rules import text
from runbooks.core.views import TaskArchived, TaskHolder, TaskPlace, TaskResult, TaskView
from runbooks.engine.context import Session
from runbooks.engine.journal import list_runs
from runbooks.task_runs.results import look_once, named_redis, no_redis, past_watched_by
from runbooks.task_runs.send import learn_secrets, sent_in

_DONE = "ready"
"""What a node calls a task that it has finished and not forgotten yet."""


def task(session: Session, task_id: str) -> ExitCode:
    """Exit code 1 where there is no trace of it. Raises BrokerError where the broker cannot be
    looked at.
    """
    snapshot = session.observe(Needs.NODES)
    assert snapshot.broker is not None
    nodes, broker, unknown = snapshot.broker.nodes, session.broker, list[str]()
    if not nodes:
        unknown.append("which node has it: no node answers")
    places = tuple(map(_place, broker.find_all(_queues(session, list(nodes.values())), task_id)))
    held = broker.holders(task_id) if nodes else []
    holders = tuple(
        TaskHolder(one.node, one.task, one.doing, one.started_at)
        for one in held
        if one.doing != _DONE
    )
    archived = tuple(_archived(session, task_id, unknown))
    record = sent_in(session, task_id)
    result, named = _result(session, task_id, unknown)
    names = [named, record[1].task if record else "", *(one.task for one in places)]
    names += [*(one.task for one in holders), *(one.task for one in archived)]
    view = TaskView(
        at=snapshot.at,
        id=task_id,
        name=next(filter(None, names), None),
        places=places,
        holders=holders,
        revoked_on=tuple(broker.revoked_on(task_id)) if nodes else (),
        archived=archived,
        sent_by=record[0].id if record else None,
        result=result,
        unknown=tuple(unknown),
    )
    session.reporter.view(view)
    return ExitCode.OK if places or holders or archived or record or result else ExitCode.FINDINGS


def _queues(session: Session, nodes: Sequence[NodeState]) -> Sequence[str]:
    """The inventory's queues, and those that nodes consume."""
    return [*session.fleet.queues, *sorted({queue for node in nodes for queue in node.queues})]


def _place(one: MessagePlace) -> TaskPlace:
    of, ahead = one.message, one.ahead if one.queue is not None else None
    return TaskPlace(
        one.queue, ahead, one.fetched_at, of.task, of.retries, of.eta_at, of.expires_at, of.args
    )  # fmt: skip


def _archived(session: Session, task_id: str, unknown: list[str]) -> Iterator[TaskArchived]:
    """The archives of this tool's runs at this broker that have a message of the task."""
    rule = text(Rule("", ids=(task_id,)))
    for record in list_runs(session.options.state_directory):
        for path in archives_in(record.directory) if record.broker == session.broker.name else ():
            try:
                ledger = read(path)
            except ArchiveError as error:
                unknown.append(f"whether run {record.id} has it: {error.problem}")
                continue
            for message in chosen(ledger, rule, time.time()):
                found = row(message, ledger, queue_of(path))
                yield TaskArchived(
                    record.id, found["queue"], found["state"], found["task"] or "", message.reason
                )


def _result(session: Session, task_id: str, unknown: list[str]) -> tuple[TaskResult | None, str]:
    """What its result says, and the task's name where that is in it; the secrets that may stand in
    it are known.
    """
    try:
        host, environment = learn_secrets(session)
        if session.fleet.app.result_backend is None:
            unknown.append(f"what became of it: {no_redis(session.fleet)}")
            return None, ""
        if named_redis(session.fleet):
            return _stored(session, task_id, unknown)
        ways = past_watched_by(session, host, environment)
        seen = [
            look for way in ways if (look := look_once(session, way, task_id)).state != "PENDING"
        ]
    except RunbookError as error:
        unknown.append(f"what became of it: {error.problem}")
        return None, ""
    if not ways:
        unknown.append("what became of it: the result backend keeps nothing for others to read")
    return (_told(seen[0]), "") if seen else (None, "")


def _stored(session: Session, task_id: str, unknown: list[str]) -> tuple[TaskResult | None, str]:
    """The same of a result backend that is a Redis."""
    there, found = session.broker.result("", task_id)
    if found is None and there:
        unknown.append("what became of it: its result is no JSON")
    if found is None:
        return None, ""
    value = f"{found.error}: {found.message}" if found.error else found.value
    told = _told(TaskState(found.state, value, found.traceback))
    return TaskResult(
        told.state, told.value, told.traceback, found.worker, found.ended_at, found.retries
    ), (found.task or "")


def _told(seen: TaskState) -> TaskResult:
    return TaskResult(
        seen.state, redact_value(seen.result), redact(seen.traceback), None, None, None
    )
