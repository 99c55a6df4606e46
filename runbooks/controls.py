"""What nodes can be told: `inv rate-limit`, `pool`, `consumer`, `shutdown` and `revoke`.

Each is planned, asked for, written down, and proved by a second look at the node. Where several
processes answer to a name it is told nothing, for each of them would obey.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

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
"""So many tasks that are named are looked for, each in every queue."""

Judged = Change | str | None
"""The change of a node; or why it is left as it is; None where it is already so."""


def rate_limit(session: Session, task: str, limit: str, patterns: str) -> ExitCode:
    """Give a task another rate limit on the nodes that know it, or on those of them that a pattern
    fits.
    """
    wanted = "" if limit in ("none", "0") else limit
    if wanted and not re.fullmatch(r"\d+(\.\d+)?(/[smh])?", wanted):
        raise UsageError(
            f"the rate limit {limit!r} is none",
            "write it as Celery does: 10/s, 10/m, 10/h; or none",
        )
    nodes = _nodes(session, patterns)
    known = {name for node in nodes.values() for name in node.registered}
    if task not in known:
        raise UsageError(
            f"no such node registers {task}{did_you_mean(task, known)}", f"see {Command('tasks')}"
        )

    def judge(node: NodeState) -> Judged:
        before = node.rate_limits.get(task, "")
        if task not in node.registered or before == wanted:
            return None
        summary = (
            f"{task} on {node.name}: {wanted or 'no rate limit'} instead of {before or 'none'}"
        )
        do, undo = (
            SetRateLimit(node.name, task, wanted, before),
            SetRateLimit(node.name, task, before, wanted),
        )
        return Change(
            BROKER,
            _STEP,
            summary,
            do,
            undo,
            "until the worker is started anew: then it has its own again",
        )

    return _carry_out(session, nodes, judge)


def pool(session: Session, patterns: str, by: int) -> ExitCode:
    """Let the prefork pools of nodes have so many processes more, or less."""
    if not by:
        raise UsageError(
            "say by how many processes: --grow N or --shrink N", "nothing was looked at"
        )

    def judge(node: NodeState) -> Judged:
        size = node.size
        if node.pool != "prefork" or size is None:
            return (
                f"its pool is {node.pool or 'unknown'}, and only prefork has processes that come"
                " and go"
            )
        if size + by < 1:
            return f"its pool has {counted(size, 'process', 'processes')}, and one has to stay"
        summary = (
            f"the pool of {node.name}: {counted(size + by, 'process', 'processes')} instead of"
            f" {size}"
        )
        busy = (
            "of those that are to go only idle ones do; where all are busy the node refuses"
            if by < 0
            else ""
        )
        do, undo = ResizePool(node.name, size + by, size), ResizePool(node.name, size, size + by)
        return Change(BROKER, _STEP, summary, do, undo, busy)

    return _carry_out(session, _nodes(session, patterns), judge)


def consumer(session: Session, patterns: str, action: str, queue: str) -> ExitCode:
    """Let nodes consume a queue, or not; none that would discard what waits there."""
    if action not in ("add", "cancel"):
        raise UsageError(
            f"{action!r} is neither add nor cancel",
            "for example: consumer 'high*' cancel low_priority",
        )
    nodes = _nodes(session, patterns)
    _require_queue(session, nodes, queue)
    waiting = _waiting(session, queue) if action == "add" else frozenset[str]()
    adds = action == "add"

    def judge(node: NodeState) -> Judged:
        if (queue in node.queues) is adds:
            return None
        if lacking := waiting - node.registered:
            return (
                f"messages of {tasks(lacking)} wait in {queue}, which it does not know: it would"
                " discard them"
            )
        do, undo = (
            SwitchConsumer(node.name, queue, adds),
            SwitchConsumer(node.name, queue, not adds),
        )
        summary = f"let {node.name} {'consume' if adds else 'consume no more of'} {queue}"
        note = "" if adds else "what it has fetched of it runs all the same"
        return Change(BROKER, _STEP, summary, do, undo, note)

    return _carry_out(session, nodes, judge)


def shutdown(session: Session, patterns: str) -> ExitCode:
    """Let nodes end once their tasks are done; that cannot be taken back."""

    def judge(node: NodeState) -> Judged:
        running = counted(len(node.running), "task runs", "tasks run")
        detail = (
            f"{running} on it now, and the node ends after that\nthis cannot be taken back: whoever"
            " runs the worker has to start it again, and may do so by itself (Restart=always)"
        )
        return Change(BROKER, _STEP, f"let {node.name} end", ShutDownNode(node.name), None, detail)

    return _carry_out(session, _nodes(session, patterns), judge)


def revoke(session: Session, ids: Sequence[str], rule: Rule | None) -> ExitCode:
    """Let all nodes discard tasks, by their ids or by what a rule means of the inventory's queues."""
    if bool(ids) is bool(rule):
        raise UsageError(
            "name tasks by their ids, or flags that mean some, not both", "see --help revoke"
        )
    session.require_consent_possible()
    session.observe(Needs.NODES)
    meant = dict.fromkeys(ids, "") if rule is None else _meant(session, rule)
    if len(meant) > _IDS_AT_MOST:
        raise UsageError(
            f"{len(meant):,} tasks are meant, and nodes are told of {_IDS_AT_MOST:,} at most",
            f"take them out of their queues instead: {Command('clean-queues')}",
        )
    if not meant:
        session.reporter.message("No message fits.")
        return ExitCode.OK
    where = (
        [f"{one}  {_where(session, one)}" for one in list(meant)[:_LOOKED_FOR]]
        if rule is None
        else []
    )
    counts = Counter(meant.values() if rule else ())
    lines = [
        *where,
        *(f"{count:,} × {task}" for task, count in counts.most_common()),
        (
            "each node discards them when it takes them; it may forget them after three hours, and"
            " all do once the last of"
        ),
        "the nodes has ended; the result backend calls them REVOKED; what already runs goes on",
        "this cannot be taken back: Celery has no way to",
    ]
    change = Change(BROKER, _STEP, f"revoke {counted(len(meant), 'task')}", RevokeTasks(tuple(meant)), None,
                    as_lines(lines), count=len(meant))  # fmt: skip
    return one_by_one(session, [change], Recap(), "Revoke them?")


def _meant(session: Session, rule: Rule) -> Mapping[str, str]:
    """The ids of the messages that a rule means, each with its task."""
    wanted = Wanted(rule, "", _IDS_AT_MOST + 1, full=False, unacked=rule.unacked)
    queues = [queue for queue in session.fleet.queues if fits(rule.queue, queue)]
    if not queues:
        raise UsageError(
            f"--queue: no queue fits {rule.queue!r}",
            f"the inventory has {', '.join(session.fleet.queues)}",
        )
    views = (session.broker.messages(queue, session.fleet.queues, wanted) for queue in queues)
    return {one.id: one.task or "" for view in views for one in view.messages if one.id}


def _where(session: Session, task_id: str) -> str:
    """Where a task that is named is now."""
    for holder in session.broker.holders(task_id):
        if holder.doing == "active":
            return f"{holder.task} runs on {holder.node}, and goes on"
        if holder.doing != "ready":
            return f"{holder.task}: {holder.doing} on {holder.node}"
    for place in session.broker.find_all(session.fleet.queues, task_id):
        held = "fetched by a worker" if place.queue is None else f"waits in {place.queue}"
        return f"{place.message.task}: {held}"
    return "no queue and no node has it: is the id right?"


def _nodes(session: Session, patterns: str) -> Mapping[str, NodeState]:
    """The nodes that are meant and answer; the others are told. Raises UsageError where a pattern
    fits nothing.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.NODES)
    session.require_alone(snapshot.other_run)
    assert snapshot.broker is not None
    meant, silent = chosen_nodes(snapshot.broker.nodes, session.broker.listening(), patterns)
    for name in silent:
        session.reporter.warning(
            f"{name} is left out: it does not answer", "it is busy (solo), hangs, or was killed"
        )
    return meant


def _require_queue(session: Session, nodes: Mapping[str, NodeState], queue: str) -> None:
    """Raise UsageError where nobody knows the queue, and nothing waits in it."""
    known = list(
        dict.fromkeys(
            (
                *session.fleet.queues,
                *(one for node in nodes.values() for one in sorted(node.queues)),
            )
        )
    )
    if queue not in known:
        _look(session, queue)


def _waiting(session: Session, queue: str) -> frozenset[str]:
    """The tasks whose messages wait in a queue; all of them are read."""
    return frozenset(of.task for one in _look(session, queue) for of in one.tasks)


def _look(session: Session, queue: str) -> Sequence[QueueView]:
    """The queue with all that waits in it. Raises UsageError where there is none."""
    named = [queue] if queue in session.fleet.queues else []
    return session.broker.queue_looks(named, lambda *_: {})(Asked(queue, exact=True)).queues


def _carry_out(
    session: Session, nodes: Mapping[str, NodeState], judge: Callable[[NodeState], Judged]
) -> ExitCode:
    """Plan what is to be told to each node, and tell it. Exit code 2 where one has to be left as it
    is.
    """
    recap, changes = Recap(), list[Change]()
    for label, node in sorted(nodes.items()):
        judged = (
            f"{node.twins} processes answer to it, and each would do it"
            if node.twins > 1
            else judge(node)
        )
        if isinstance(judged, str):
            session.reporter.warning(f"{label} is left as it is: {judged}", "")
            recap.at(BROKER).blocked += 1
        elif judged is None:
            recap.at(BROKER).ok += 1
        else:
            changes.append(judged)
    return one_by_one(session, changes, recap, "Tell them?")
