"""Queues that do not move although their workers answer: these hang, wait, or take nothing."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    BrokerState,
    Finding,
    NodeState,
    RunningTask,
    SecondLook,
    Severity,
    Snapshot,
)
from runbooks.core.wording import counted, span
from runbooks.diagnosis.task_lines import task_line

LONG_S = 30.0
"""Tasks that have run for less may end at any moment."""
MANY_ETAS = 1000
_SHOWN = 5


def may_be_stuck(broker: BrokerState, now: float) -> bool:
    """Whether a second look is worth its time."""
    return bool(suspects(broker, now) or _run_twice(broker.nodes))


def suspects(broker: BrokerState, now: float) -> list[str]:
    """Return the queues where messages wait, and one worker is idle, or all have long been busy."""
    return [name for name in broker.queues if _is_suspect(broker, name, now)]


def _is_suspect(broker: BrokerState, queue: str, now: float) -> bool:
    depth = broker.queues[queue].depth
    consumers = _consumers(broker.nodes.values(), queue)
    if depth and any(_is_idle(node) for node in consumers):
        return True
    # Messages also wait in workers, which fetch more than they run.
    if not depth and not any(node.reserved for node in consumers):
        return False
    return bool(consumers) and all(_is_long_busy(node, now) for node in consumers)


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find what two looks show of suspect queues, and workers that hold too many messages."""
    broker = snapshot.broker
    assert broker is not None
    yield from _holds_etas(broker)
    yield from _hang_by_themselves(fleet, snapshot)
    if broker.second is None:
        return
    yield from _twice(fleet, broker, broker.second)
    locked = _locked(fleet, snapshot)
    for queue in suspects(broker, snapshot.at):
        consumers = {node.name for node in _consumers(broker.nodes.values(), queue)}
        if not locked.keys() & consumers:
            yield from _of_busy_workers(fleet, snapshot, broker.second, queue)
        yield from _of_idle_workers(broker, broker.second, queue)


def _consumers(nodes: Collection[NodeState], queue: str) -> list[NodeState]:
    return [node for node in nodes if queue in node.queues]


def _is_idle(node: NodeState) -> bool:
    return not node.running and not node.holds


def _is_busy(node: NodeState) -> bool:
    """Whether each of its processes runs a task; False if several nodes answer to the name."""
    return node.size is not None and len(node.running) >= node.size > 0


def _is_long_busy(node: NodeState, now: float) -> bool:
    return _is_busy(node) and _age_s(node.running, now) > LONG_S


def _age_s(running: Iterable[RunningTask], now: float) -> float:
    """For how long all of these tasks have run: since the last of them began.

    0 if the start of one is not known.
    """
    ages_s = [now - one.started_at if one.started_at is not None else 0.0 for one in running]
    return min(ages_s, default=0.0)


# --- every process is busy ------------------------------------------------------------------------


class _Busy(Struct, frozen=True):
    """A queue whose workers are all busy: none of their tasks ended between the two looks."""

    queue: str
    depth: int
    """Messages that wait in the queue."""
    reserved: int
    """Messages of the queue that wait in workers."""
    consumers: Sequence[NodeState]
    senders: Mapping[str, int]
    """The ids of the tasks that sent waiting messages, each with the number of messages."""
    age_s: float
    """For how long all of these tasks have run, at least."""
    lines: Sequence[str]
    """The tasks, for the evidence."""

    @property
    def runs(self) -> list[RunningTask]:
        return [task for node in self.consumers for task in node.running]

    @property
    def names(self) -> str:
        return ", ".join(sorted(node.name for node in self.consumers))


def _still_busy(broker: BrokerState, second: SecondLook, queue: str) -> list[NodeState]:
    """Return the workers of a queue if each still runs the tasks of the first look; else none."""
    consumers = _consumers(second.nodes.values(), queue)
    before = {task.id for node in broker.nodes.values() for task in node.running}
    for node in consumers:
        if not _is_busy(node) or not before.issuperset(task.id for task in node.running):
            return []
    return consumers


def waiting_behind_tasks(fleet: Fleet, snapshot: Snapshot) -> Iterator[str]:
    """Describe the queues in which nothing moves because of long tasks; not yet a fault."""
    broker = snapshot.broker
    if broker is None or broker.second is None:
        return
    hanging = _locked(fleet, snapshot)
    limit = span(fleet.app.thresholds.runtime)
    for queue in suspects(broker, snapshot.at):
        busy = _busy(fleet, snapshot, broker.second, queue)
        if busy is None or _fault(fleet, busy):
            continue
        if any(node.name in hanging for node in busy.consumers):
            continue
        yield (
            f"{_waiting(busy)}, and none has started for {span(busy.age_s)}: every process that"
            " could take them still runs an earlier task."
        )
        yield (
            "It is not known whether these tasks hang or are only long; after"
            f" {limit} this counts as a fault:"
        )
        yield from (f"  {line}" for line in busy.lines)


def _of_busy_workers(
    fleet: Fleet, snapshot: Snapshot, second: SecondLook, queue: str
) -> Iterator[Finding]:
    busy = _busy(fleet, snapshot, second, queue)
    fault = _fault(fleet, busy) if busy else None
    if fault:
        yield fault


def _fault(fleet: Fleet, busy: _Busy) -> Finding | None:
    """Report a queue whose workers are all busy; None if their tasks may only be long."""
    limit_s = fleet.app.thresholds.runtime
    if all(task.id in busy.senders for task in busy.runs):
        return _waits_for_itself(busy)
    return _hangs(busy, limit_s) if busy.age_s > limit_s else None


def _busy(fleet: Fleet, snapshot: Snapshot, second: SecondLook, queue: str) -> _Busy | None:
    """Return a queue whose workers are all busy for LONG_S or more; None if one is not."""
    broker = snapshot.broker
    assert broker is not None
    clocks = _clocks(fleet, snapshot)
    consumers = _still_busy(broker, second, queue)
    ages_s = []
    lines = []
    for node in consumers:
        now = clocks.get(node.name, snapshot.at)
        ages_s.append(_age_s(node.running, now))
        for task in node.running:
            lines.append(f"inspect active: {node.name} {task_line(task, now)}")
    age_s = min(ages_s, default=0.0)
    depth = broker.queues[queue].depth
    reserved = second.reserved.get(queue, 0)
    if age_s < LONG_S or not depth + reserved:
        return None
    senders = second.senders.get(queue, {})
    return _Busy(queue, depth, reserved, consumers, senders, age_s, _first(lines))


def _first(lines: Sequence[str]) -> list[str]:
    """Return the first lines about tasks, and the number of the others."""
    more = len(lines) - _SHOWN
    if more <= 0:
        return [*lines]
    return [*lines[:_SHOWN], f"and {counted(more, 'task')} more"]


def _clocks(fleet: Fleet, snapshot: Snapshot) -> dict[str, float]:
    """Return the time by the host's clock, by node: it dates the start of the node's tasks."""
    clocks = {}
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            for worker in host.settings.workers:
                clocks[host.node(worker)] = states[host.name].clock_at
    return clocks


def _waits_for_itself(busy: _Busy) -> Finding:
    sent = sum(busy.senders[task.id] for task in busy.runs)
    which = counted(sent, f"waiting message of {busy.queue}", f"waiting messages of {busy.queue}")
    if busy.reserved:
        way_out = (
            "the workers have already fetched some of the waiting messages, which another worker"
            f" would not get: {Command('restart-workers', '--kill-running')} ends the tasks that"
            f" wait; {_lost(busy.runs)}"
        )
    else:
        way_out = f"to let them run now, start one more worker for {busy.queue}"
    return Finding(
        "worker.waits_for_itself",
        busy.queue,
        f"the running tasks of {busy.names} have sent {which}, and no process is free: if they wait"
        " for the results, none of them ever ends",
        (
            *busy.lines,
            "each of them is the parent (header parent_id) of messages that wait",
            "a task must not wait for the result of another: use a chain or chord, or send subtasks"
            " to a queue with other workers",
            way_out,
        ),
    )


def _hangs(busy: _Busy, limit_s: float) -> Finding:
    end = Command("restart-workers", "--kill-running")
    return Finding(
        "worker.hangs",
        busy.queue,
        f"{_waiting(busy)}, and every process that could take them has been running one task for"
        f" more than {span(busy.age_s)}",
        (
            *busy.lines,
            "none of them ended between two looks; the limit is"
            f" {span(limit_s)} (celery_thresholds: runtime)",
            f"to free the workers now: {end} ends them with their tasks; {_lost(busy.runs)}",
            "task_time_limit in the application ends a task that hangs",
        ),
    )


def _lost(runs: Sequence[RunningTask]) -> str:
    """Describe what happens to tasks when they are killed."""
    lost = sum(task.acknowledged for task in runs)
    if lost:
        return f"{lost} of {len(runs)} tasks are then lost"
    return "their tasks are then delivered again"


def _waiting(busy: _Busy) -> str:
    if not busy.reserved:
        return f"{counted(busy.depth, 'message waits', 'messages wait')} in {busy.queue}"
    of_queue = f"message of {busy.queue} waits", f"messages of {busy.queue} wait"
    in_workers = counted(busy.reserved, "is in a worker", "are in workers")
    return f"{counted(busy.depth + busy.reserved, *of_queue)} ({in_workers})"


# --- a worker hangs -------------------------------------------------------------------------------


def busy_processes(broker: BrokerState, now: float) -> dict[str, frozenset[int]]:
    """Return the pids of processes that have long been busy while messages wait, by node.

    Only nodes without a free process.
    """
    return {
        node.name: frozenset(task.pid for task in node.running if task.pid is not None)
        for node in broker.nodes.values()
        if _is_long_busy(node, now) and _behind(broker, node)
    }


def _behind(broker: BrokerState, node: NodeState) -> int:
    """Count the messages that wait in a node and in its queues."""
    queues = node.queues & broker.queues.keys()
    return len(node.reserved) + sum(broker.queues[queue].depth for queue in queues)


def _locked(fleet: Fleet, snapshot: Snapshot) -> dict[str, tuple[str, frozenset[int]]]:
    """Return the workers whose processes all wait for themselves: by node, the host and pids."""
    assert snapshot.broker is not None
    busy = busy_processes(snapshot.broker, snapshot.at)
    states = snapshot.reachable()
    locked = {}
    for host in fleet.hosts:
        if host.name not in states:
            continue
        for worker in host.settings.workers:
            node = host.node(worker)
            pids = busy.get(node)
            if pids and pids <= states[host.name].locked:
                locked[node] = (host.name, pids)
    return locked


def _hang_by_themselves(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find workers whose processes all wait for locks that only they could release.

    **Source:** billiard 4.2.1 `pool.py: _join_exited_workers`: a process that ends is replaced.
    """
    broker = snapshot.broker
    assert broker is not None
    for name, (host, pids) in _locked(fleet, snapshot).items():
        node = broker.nodes[name]
        now = snapshot.reachable()[host].clock_at
        running = [f"inspect active: {task_line(task, now)}" for task in node.running]
        waiting = counted(_behind(broker, node), "message waits", "messages wait")
        ordered = [str(pid) for pid in sorted(pids)]
        yield Finding(
            "worker.hangs",
            name,
            f"every process of {name} hangs: it waits for a lock that only it could release;"
            f" {waiting} behind them",
            (
                *_first(running),
                f"each thread of pid {', '.join(ordered)} waits without a time limit for a lock"
                " that no other process can release, in two looks (/proc/PID/task/TID/syscall)",
                f"to see where: py-spy dump --pid {min(pids)}, on {host}",
                f"to free the worker, on {host}: sudo kill -KILL {' '.join(ordered)}; it starts new"
                f" processes; {_lost(node.running)}",
                "task_time_limit in the application ends a task that hangs",
            ),
        )


# --- a worker is idle -----------------------------------------------------------------------------


def _of_idle_workers(broker: BrokerState, second: SecondLook, queue: str) -> Iterator[Finding]:
    """Find workers that were idle in both looks, while the same messages waited in their queue."""
    before = {node.name for node in _consumers(broker.nodes.values(), queue) if _is_idle(node)}
    consumers = _consumers(second.nodes.values(), queue)
    idle = [node for node in consumers if _is_idle(node) and node.name in before]
    if not idle or queue not in second.unmoved:
        return
    names = ", ".join(sorted(node.name for node in idle))
    waiting = counted(broker.queues[queue].depth, "message waits", "messages wait")
    seen = f"the same message was next to run in {queue} for {span(second.after_s)}"
    held_back = list(_held_back(idle, second))
    if held_back:
        yield Finding(
            "worker.rate_limited",
            queue,
            f"{waiting} in {queue} behind tasks that {names} holds back because of their rate"
            " limit",
            (
                *held_back,
                seen,
                "give tasks with a rate limit a queue and a worker of their own, or raise"
                " rate_limit",
            ),
            severity=Severity.WARNING,
        )
        return
    yield Finding(
        "queue.not_taken",
        queue,
        f"{waiting} in {queue}, and {names} is idle and takes none of them",
        (
            seen,
            f"inspect active, reserved, scheduled: nothing on {names}",
            *_why_not_taken(second, names),
        ),
    )


def _held_back(idle: Sequence[NodeState], second: SecondLook) -> Iterator[str]:
    """Describe the messages that idle nodes hold back because of a rate limit."""
    limits = {}
    for node in idle:
        for queue, task in second.held_back:
            if queue in node.queues and task in node.rate_limits:
                limits[queue, task] = node.rate_limits[task]
    for (queue, task), limit in sorted(limits.items()):
        messages = counted(second.held_back[queue, task], "message")
        yield f"{messages} of {task} from {queue}; its rate limit is {limit}"


def _why_not_taken(second: SecondLook, names: str) -> Iterator[str]:
    """Describe what CLIENT LIST shows of clients that wait for messages.

    **Source:** Redis `BRPOP`: it returns at once if one of its lists has an item.
    """
    if second.waiting_clients is None:
        yield "it is not known whether a client waits for messages: CLIENT LIST is not allowed"
    elif second.waiting_clients:
        clients = counted(second.waiting_clients, "client waits", "clients wait")
        yield f"{clients} in BRPOP, so on other lists"
        yield (
            "compare global_keyprefix, sep and priority_steps of the worker with"
            " celery_broker_options"
        )
    else:
        yield "no client of this db waits in BRPOP: the worker has stopped asking for messages"
        yield f"to make {names} ask again: {Command('restart-workers')}"


# --- what a look at the nodes shows ---------------------------------------------------------------


def _run_twice(nodes: Mapping[str, NodeState]) -> dict[str, list[str]]:
    """Return the ids of tasks that run on several nodes at once, with these nodes."""
    where = defaultdict[str, list[str]](list)
    for name, node in nodes.items():
        for task in node.running:
            where[task.id].append(name)
    return {task: names for task, names in where.items() if len(names) > 1}


def _twice(fleet: Fleet, broker: BrokerState, second: SecondLook) -> Iterator[Finding]:
    """Find tasks that run on several nodes in both looks.

    **Source:** kombu 5.7.0 `transport/redis.py: QoS.restore_visible`.
    """
    ids = _run_twice(broker.nodes).keys() & _run_twice(second.nodes).keys()
    by_task = defaultdict[str, list[tuple[str, str]]](list)
    for node in second.nodes.values():
        for task in node.running:
            if task.id in ids:
                by_task[task.name].append((task.id, node.name))
    limit = span(fleet.app.broker_options.visibility_timeout)
    for name, places in sorted(by_task.items()):
        count = len({id for id, _ in places})
        which = counted(count, f"task {name} runs", f"tasks {name} run")
        yield Finding(
            "task.runs_twice",
            name,
            f"{which} on several workers at once",
            (
                *(f"inspect active: {id} on {node}" for id, node in sorted(places)[:_SHOWN]),
                f"a message that is not acknowledged {limit} after its fetch is delivered again"
                " (visibility_timeout); with acks_late its task may still be running then",
                "raise visibility_timeout above the longest task, in the application's"
                " broker_transport_options and in celery_broker_options, then restart the workers",
            ),
        )


def _holds_etas(broker: BrokerState) -> Iterator[Finding]:
    """Find a worker that holds very many messages with an ETA, while others hold none.

    **Source:** celery 5.7.0 `worker/strategy.py`: each message with an ETA raises the prefetch
    count by one.
    """
    for node in broker.nodes.values():
        others = [
            one for one in broker.nodes.values() if one is not node and one.queues & node.queues
        ]
        idle = sorted(one.name for one in others if not one.later and not one.running)
        if len(node.later) >= MANY_ETAS and idle:
            yield Finding(
                "worker.holds_etas",
                node.name,
                f"{node.name} holds {counted(len(node.later), 'message')} until their ETA, and"
                f" {', '.join(idle)} holds none",
                (
                    f"inspect scheduled: {len(node.later):,} on {node.name}",
                    "a worker fetches every message with an ETA at once and keeps it in memory;"
                    " if the worker dies, they wait for the visibility timeout",
                    "limit them with worker_eta_task_limit (Celery 5.6), or send the tasks when"
                    " they are due",
                ),
                severity=Severity.WARNING,
            )
