"""`inv task ID`: where one task is now, and how it ended; changes nothing."""

import time
from collections.abc import Iterator, Sequence

from msgspec import Struct, field

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
"""A node's word for a task that it has finished but not forgotten."""


class _Search(Struct):
    """Collects what is unknown about one task, and the names that it was found under."""

    session: Session
    task_id: str
    unknown: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def task(session: Session, task_id: str) -> ExitCode:
    """Show one task; exit code 1 if there is no trace of it.

    Raises BrokerError if the broker cannot be read.
    """
    snapshot = session.observe(Needs.NODES)
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    search = _Search(session, task_id)
    if not nodes:
        search.unknown.append("which node has it: no node answers")
    queues = _queues(session, list(nodes.values()))
    places = tuple(map(_place, session.broker.find_all(queues, task_id)))
    holders = tuple(_holders(search)) if nodes else ()
    archived = tuple(_archived(search))
    record = sent_in(session, task_id)
    result = _result(search)
    if record:
        search.names.append(record[1].task)
    search.names.extend(place.task for place in places)
    search.names.extend(holder.task for holder in holders)
    search.names.extend(one.task for one in archived)
    view = TaskView(
        at=snapshot.at,
        id=task_id,
        name=next(filter(None, search.names), None),
        places=places,
        holders=holders,
        revoked_on=tuple(session.broker.revoked_on(task_id)) if nodes else (),
        archived=archived,
        sent_by=record[0].id if record else None,
        result=result,
        unknown=tuple(search.unknown),
    )
    session.reporter.view(view)
    if places or holders or archived or record or result:
        return ExitCode.OK
    return ExitCode.FINDINGS


def _queues(session: Session, nodes: Sequence[NodeState]) -> Sequence[str]:
    """The inventory's queues, and those that nodes consume."""
    consumed: set[str] = set()
    for node in nodes:
        consumed.update(node.queues)
    return [*session.fleet.queues, *sorted(consumed)]


def _place(one: MessagePlace) -> TaskPlace:
    of = one.message
    return TaskPlace(
        one.queue,
        one.ahead if one.queue is not None else None,
        one.fetched_at,
        of.task,
        of.retries,
        of.eta_at,
        of.expires_at,
        of.args,
    )


def _holders(search: _Search) -> Iterator[TaskHolder]:
    for one in search.session.broker.holders(search.task_id):
        if one.doing != _DONE:
            yield TaskHolder(one.node, one.task, one.doing, one.started_at)


def _archived(search: _Search) -> Iterator[TaskArchived]:
    """The task's messages in the archives of this tool's runs at this broker."""
    session = search.session
    rule = text(Rule("", ids=(search.task_id,)))
    for record in list_runs(session.options.state_directory):
        if record.broker != session.broker.name:
            continue
        for path in archives_in(record.directory):
            try:
                ledger = read(path)
            except ArchiveError as error:
                search.unknown.append(f"whether run {record.id} has it: {error.problem}")
                continue
            for message in chosen(ledger, rule, time.time()):
                found = row(message, ledger, queue_of(path))
                task_name = found["task"] or ""
                yield TaskArchived(
                    record.id,
                    found["queue"],
                    found["state"],
                    task_name,
                    message.reason,
                )


def _result(search: _Search) -> TaskResult | None:
    """The task's result, once the secrets that it may contain are known."""
    session = search.session
    seen: list[TaskState] = []
    try:
        host, environment = learn_secrets(session)
        if session.fleet.app.result_backend is None:
            search.unknown.append(f"what became of it: {no_redis(session.fleet)}")
            return None
        if named_redis(session.fleet):
            return _stored(search)
        ways = past_watched_by(session, host, environment)
        for way in ways:
            seen.append(look_once(session, way, search.task_id))
    except RunbookError as error:
        search.unknown.append(f"what became of it: {error.problem}")
        return None
    if not ways:
        search.unknown.append("what became of it: no other process can read its result backend")
    for look in seen:
        if look.state != "PENDING":
            return _redacted(look)
    return None


def _stored(search: _Search) -> TaskResult | None:
    """The result in a Redis."""
    there, found = search.session.broker.result("", search.task_id)
    if found is None:
        if there:
            search.unknown.append("what became of it: its result is not JSON")
        return None
    if found.task:
        search.names.append(found.task)
    value = found.value
    if found.error:
        value = f"{found.error}: {found.message}"
    shown = _redacted(TaskState(found.state, value, found.traceback))
    return TaskResult(
        shown.state,
        shown.value,
        shown.traceback,
        found.worker,
        found.ended_at,
        found.retries,
    )


def _redacted(seen: TaskState) -> TaskResult:
    value = redact_value(seen.result)
    return TaskResult(seen.state, value, redact(seen.traceback), None, None, None)
