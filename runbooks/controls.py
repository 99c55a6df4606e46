"""Changes nodes: `inv rate-limit`, `pool`, `consumer`, `shutdown` and `revoke`.

Each is planned, confirmed, recorded, and verified by a second look at the node. If several
processes answer to one name, nothing is sent to it, because each of them would obey.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from runbooks.broker.views.message_looks import Wanted
from runbooks.broker.views.queue_looks import Asked
from runbooks.core.command import Command
from runbooks.core.effects import (
    BROKER,
    Change,
    ResizePool,
    RevokeTasks,
    SetRateLimit,
    ShutDownNode,
    SwitchConsumer,
)
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.model import NodeState, Rule
from runbooks.core.needs import Needs
from runbooks.core.outside import as_lines
from runbooks.core.rules import fits
from runbooks.core.views import QueueView
from runbooks.core.wording import counted, did_you_mean, tasks
from runbooks.engine.chosen import chosen_nodes
from runbooks.engine.context import Session
from runbooks.engine.one_by_one import one_by_one
from runbooks.engine.recap import Recap

_STEP = "nodes"
_IDS_AT_MOST = 10_000
_LOOKED_FOR = 20
"""How many of the named tasks are looked for, each in every queue."""
_RATE_LIMIT = re.compile(r"\d+(\.\d+)?(/[smh])?")
_NOT_UNDONE = "this cannot be undone: "

Nodes = Mapping[str, NodeState]
Judged = Change | str | None
"""The change of a node; or why it is not changed; or None if there is nothing to change."""


def rate_limit(session: Session, task: str, limit: str, patterns: str) -> ExitCode:
    """Set a task's rate limit on the nodes that register it and match a pattern."""
    wanted = "" if limit in ("none", "0") else limit
    if wanted and not _RATE_LIMIT.fullmatch(wanted):
        raise UsageError(
            f"{limit!r} is not a rate limit",
            "write it as Celery does: 10/s, 10/m, 10/h; or none",
        )
    nodes = _nodes(session, patterns)
    known: set[str] = set()
    for node in nodes.values():
        known.update(node.registered)
    if task not in known:
        problem = f"none of these nodes registers {task}{did_you_mean(task, known)}"
        raise UsageError(problem, f"see {Command('tasks')}")

    def judge(node: NodeState) -> Judged:
        before = node.rate_limits.get(task, "")
        if task not in node.registered or before == wanted:
            return None
        return Change(
            BROKER,
            _STEP,
            f"{task} on {node.name}: {wanted or 'no rate limit'} instead of {before or 'none'}",
            SetRateLimit(node.name, task, wanted, before),
            SetRateLimit(node.name, task, before, wanted),
            "until the worker restarts: then it has its own limit again",
        )

    return _carry_out(session, nodes, judge)


def pool(session: Session, patterns: str, by: int) -> ExitCode:
    """Change the number of processes in the prefork pools of nodes by this many."""
    if not by:
        raise UsageError("name a number of processes: --grow N or --shrink N", "nothing was done")

    def judge(node: NodeState) -> Judged:
        size = node.size
        if node.pool != "prefork" or size is None:
            return f"its pool is {node.pool or 'unknown'}, and only a prefork pool can be resized"
        if size + by < 1:
            return f"its pool has {counted(size, 'process', 'processes')}, and one has to stay"
        now = counted(size + by, "process", "processes")
        detail = ""
        if by < 0:
            detail = "only idle processes end; if all are busy, the node refuses"
        return Change(
            BROKER,
            _STEP,
            f"the pool of {node.name}: {now} instead of {size}",
            ResizePool(node.name, size + by, size),
            ResizePool(node.name, size, size + by),
            detail,
        )

    return _carry_out(session, _nodes(session, patterns), judge)


def consumer(session: Session, patterns: str, action: str, queue: str) -> ExitCode:
    """Start or stop consuming a queue on nodes, except those that would discard its messages."""
    if action not in ("add", "cancel"):
        raise UsageError(
            f"expected add or cancel, got {action!r}",
            "for example: consumer 'high*' cancel low_priority",
        )
    nodes = _nodes(session, patterns)
    _require_queue(session, nodes, queue)
    adds = action == "add"
    waiting: frozenset[str] = frozenset()
    if adds:
        waiting = _waiting(session, queue)

    def judge(node: NodeState) -> Judged:
        if (queue in node.queues) is adds:
            return None
        lacking = waiting - node.registered
        if lacking:
            return (
                f"messages of {tasks(lacking)} wait in {queue}, which it does not register: it"
                " would discard them"
            )
        summary = f"{node.name} starts to consume {queue}"
        detail = ""
        if not adds:
            summary = f"{node.name} stops consuming {queue}"
            detail = "the messages that it has fetched still run"
        return Change(
            BROKER,
            _STEP,
            summary,
            SwitchConsumer(node.name, queue, adds),
            SwitchConsumer(node.name, queue, not adds),
            detail,
        )

    return _carry_out(session, nodes, judge)


def shutdown(session: Session, patterns: str) -> ExitCode:
    """Shut nodes down once their tasks have ended; this cannot be undone."""

    def judge(node: NodeState) -> Judged:
        running = counted(len(node.running), "task runs", "tasks run")
        detail = f"{running} on it now; the node ends after that\n{_NOT_UNDONE}whoever runs the"
        detail += " worker has to start it again, or does so by itself (Restart=always)"
        return Change(
            BROKER,
            _STEP,
            f"shut down {node.name}",
            ShutDownNode(node.name),
            None,
            detail,
        )

    return _carry_out(session, _nodes(session, patterns), judge)


def revoke(session: Session, ids: Sequence[str], rule: Rule | None) -> ExitCode:
    """Revoke tasks on all nodes, by their ids or by a rule that selects waiting messages."""
    if bool(ids) is bool(rule):
        problem = "name tasks by their ids, or select them with flags, not both"
        raise UsageError(problem, "see --help revoke")
    session.require_consent_possible()
    session.observe(Needs.NODES)
    selected: Mapping[str, str] = dict.fromkeys(ids, "")
    if rule is not None:
        selected = _selected(session, rule)
    if len(selected) > _IDS_AT_MOST:
        raise UsageError(
            f"{len(selected):,} tasks are selected; the limit is {_IDS_AT_MOST:,}",
            f"archive them instead: {Command('clean-queues')}",
        )
    if not selected:
        session.reporter.message("No message matches.")
        return ExitCode.OK
    lines: list[str] = []
    if rule is None:
        for one in list(selected)[:_LOOKED_FOR]:
            lines.append(f"{one}  {_where(session, one)}")
    else:
        for task, count in Counter(selected.values()).most_common():
            lines.append(f"{count:,} × {task}")
    lines += [
        "each node discards them when it takes them; tasks that already run go on",
        "a node may forget them after three hours; all do once the last node has ended",
        "the result backend calls them REVOKED",
        f"{_NOT_UNDONE}Celery has no way to",
    ]
    change = Change(
        BROKER,
        _STEP,
        f"revoke {counted(len(selected), 'task')}",
        RevokeTasks(tuple(selected)),
        None,
        as_lines(lines),
        count=len(selected),
    )
    return one_by_one(session, [change], Recap(), "Revoke them?")


def _selected(session: Session, rule: Rule) -> Mapping[str, str]:
    """The ids of the messages that a rule selects, each with its task."""
    wanted = Wanted(rule, "", _IDS_AT_MOST + 1, full=False, unacked=rule.unacked)
    queues = [queue for queue in session.fleet.queues if fits(rule.queue, queue)]
    if not queues:
        raise UsageError(
            f"--queue: no queue matches {rule.queue!r}",
            f"the queues are {', '.join(session.fleet.queues)}",
        )
    found: dict[str, str] = {}
    for queue in queues:
        view = session.broker.messages(queue, session.fleet.queues, wanted)
        for one in view.messages:
            if one.id:
                found[one.id] = one.task or ""
    return found


def _where(session: Session, task_id: str) -> str:
    """Where a task that is named is now."""
    for holder in session.broker.holders(task_id):
        if holder.doing == "active":
            return f"{holder.task} runs on {holder.node}, and goes on"
        if holder.doing != "ready":
            return f"{holder.task}: {holder.doing} on {holder.node}"
    for place in session.broker.find_all(session.fleet.queues, task_id):
        where = f"waits in {place.queue}"
        if place.queue is None:
            where = "fetched by a worker"
        return f"{place.message.task}: {where}"
    return "no queue and no node has it: is the id right?"


def _nodes(session: Session, patterns: str) -> Nodes:
    """The nodes that match and answer; warns of the others.

    Raises UsageError if a pattern matches nothing.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.NODES)
    session.require_alone(snapshot.other_run)
    assert snapshot.broker is not None
    selected, silent = chosen_nodes(snapshot.broker.nodes, session.broker.listening(), patterns)
    for name in silent:
        problem = f"{name} is skipped: it does not answer"
        session.reporter.warning(problem, "it is busy (solo), hangs, or was killed")
    return selected


def _require_queue(session: Session, nodes: Nodes, queue: str) -> None:
    """Raise UsageError if no one knows the queue, and nothing waits in it."""
    known = set(session.fleet.queues)
    for node in nodes.values():
        known.update(node.queues)
    if queue not in known:
        _look(session, queue)


def _waiting(session: Session, queue: str) -> frozenset[str]:
    """The tasks whose messages wait in a queue; all messages are read."""
    found: set[str] = set()
    for view in _look(session, queue):
        found.update(tally.task for tally in view.tasks)
    return frozenset(found)


def _look(session: Session, queue: str) -> Sequence[QueueView]:
    """The queue with all its messages. Raises UsageError if there is no such queue."""
    named = [queue] if queue in session.fleet.queues else []
    look = session.broker.queue_looks(named, lambda *_: {})
    return look(Asked(queue, exact=True)).queues


def _carry_out(session: Session, nodes: Nodes, judge: Callable[[NodeState], Judged]) -> ExitCode:
    """Plan and make each node's change; exit code 2 if one cannot be changed."""
    recap = Recap()
    changes: list[Change] = []
    for label, judged in _judgements(nodes, judge):
        if isinstance(judged, str):
            session.reporter.warning(f"{label} is not changed: {judged}", "")
            recap.at(BROKER).blocked += 1
        elif judged is None:
            recap.at(BROKER).ok += 1
        else:
            changes.append(judged)
    return one_by_one(session, changes, recap, "Change them?")


def _judgements(
    nodes: Nodes,
    judge: Callable[[NodeState], Judged],
) -> Iterator[tuple[str, Judged]]:
    for label, node in sorted(nodes.items()):
        if node.twins > 1:
            yield label, f"{node.twins} processes answer to it, and each would do it"
        else:
            yield label, judge(node)
