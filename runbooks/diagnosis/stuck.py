"""Queues that do not move although their workers answer: the workers hang, wait for themselves, or
take nothing.
"""

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
"""Tasks that run for less may end at any moment."""

MANY_ETAS = 1000
_SHOWN = 5


def may_be_stuck(broker: BrokerState, now: float) -> bool:
    """Whether a second look is worth its time."""
    return bool(suspects(broker, now) or _run_twice(broker.nodes))


def suspects(broker: BrokerState, now: float) -> list[str]:
    """The queues where messages wait, and every worker has been busy for long, or one has nothing
    to do.

    Messages wait in workers, too, which fetch more than they run.
    """
    return [
        name
        for name, queue in broker.queues.items()
        if (consumers := _consumers(broker.nodes.values(), name))
        if (queue.depth and any(map(_is_idle, consumers)))
        or (
            (queue.depth or any(node.reserved for node in consumers))
            and all(_is_busy(node) and _age_s(node.running, now) > LONG_S for node in consumers)
        )
    ]


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What two looks show of the queues that the first left a suspicion of, and who holds too many
    messages.
    """
    broker = snapshot.broker
    assert broker is not None
    yield from _holds_etas(broker)
    yield from _hang_by_themselves(fleet, snapshot)
    if broker.second:
        yield from _twice(fleet, broker, broker.second)
        for queue in suspects(broker, snapshot.at):
            if not _locked(fleet, snapshot).keys() & {
                node.name for node in _consumers(broker.nodes.values(), queue)
            }:
                yield from _of_busy_workers(fleet, snapshot, broker.second, queue)
            yield from _of_idle_workers(broker, broker.second, queue)


def _consumers(nodes: Collection[NodeState], queue: str) -> list[NodeState]:
    return [node for node in nodes if queue in node.queues]


def _is_idle(node: NodeState) -> bool:
    return not node.running and not node.holds


def _is_busy(node: NodeState) -> bool:
    """Whether each of its processes runs a task; not where several nodes answer to the name."""
    return node.size is not None and len(node.running) >= node.size > 0


def _age_s(running: Iterable[RunningTask], now: float) -> float:
    """For how long all of these have run: since the last of them began. 0 where one does not say
    when it did.
    """
    return min(
        (now - task.started_at if task.started_at is not None else 0.0 for task in running),
        default=0.0,
    )


# --- every process is busy --------------------------------------------------------------------------------------------


class _Busy(Struct, frozen=True):
    """A queue of which every worker is busy: what they run has not ended between the looks, for
    `age_s` or more.

    `reserved` of what waits is in the workers already. `senders` are the tasks that sent it, each
    with how many of the messages that were read.
    """

    queue: str
    depth: int
    reserved: int
    consumers: Sequence[NodeState]
    senders: Mapping[str, int]
    age_s: float
    told: Sequence[str]

    @property
    def runs(self) -> list[RunningTask]:
        return [task for node in self.consumers for task in node.running]

    @property
    def names(self) -> str:
        return ", ".join(sorted(node.name for node in self.consumers))


def _still_busy(broker: BrokerState, second: SecondLook, queue: str) -> list[NodeState]:
    """The workers of a queue where each is busy with what it ran in the first look; none where one
    is not.
    """
    consumers = _consumers(second.nodes.values(), queue)
    before = {task.id for node in broker.nodes.values() for task in node.running}
    return (
        consumers
        if all(_is_busy(node) and before.issuperset(_ids(node)) for node in consumers)
        else []
    )


def waiting_behind_tasks(fleet: Fleet, snapshot: Snapshot) -> Iterator[str]:
    """Of each queue in which nothing moves for tasks that may only be long: a line that says so. It
    is no fault yet.
    """
    broker = snapshot.broker
    if broker is None or broker.second is None:
        return
    for queue in suspects(broker, snapshot.at):
        busy = _busy(fleet, snapshot, broker, broker.second, queue)
        hanging = _locked(fleet, snapshot)
        if (
            busy
            and not _fault(fleet, busy)
            and not any(node.name in hanging for node in busy.consumers)
        ):
            limit = span(fleet.app.thresholds.runtime)
            yield (
                f"{_waiting(busy)}, and none has begun for {span(busy.age_s)}: every process that"
                " could take them is still at a task of before then."
            )
            yield (
                f"Whether these tasks hang or are only long is not known; after {limit} it counts"
                " as a fault:"
            )
            yield from (f"  {line}" for line in busy.told)


def _of_busy_workers(
    fleet: Fleet, snapshot: Snapshot, second: SecondLook, queue: str
) -> Iterator[Finding]:
    broker = snapshot.broker
    assert broker is not None
    busy = _busy(fleet, snapshot, broker, second, queue)
    if busy and (fault := _fault(fleet, busy)):
        yield fault


def _fault(fleet: Fleet, busy: _Busy) -> Finding | None:
    """What is wrong with a queue of which every worker is busy; None where its tasks may only be
    long.
    """
    limit_s = fleet.app.thresholds.runtime
    if all(task.id in busy.senders for task in busy.runs):
        return _waits_for_itself(busy)
    return _hangs(busy, limit_s) if busy.age_s > limit_s else None


def _busy(
    fleet: Fleet, snapshot: Snapshot, broker: BrokerState, second: SecondLook, queue: str
) -> _Busy | None:
    """A queue of which every worker is busy, for LONG_S at the least; None where that is not so."""
    consumers = _still_busy(broker, second, queue)
    clocks = _clocks(fleet, snapshot)
    nows = [clocks.get(node.name, snapshot.at) for node in consumers]
    age_s = min(
        (_age_s(node.running, now) for node, now in zip(consumers, nows, strict=True)), default=0.0
    )
    depth, reserved = broker.queues[queue].depth, second.reserved.get(queue, 0)
    if age_s < LONG_S or not depth + reserved:
        return None
    lines = [
        f"inspect active: {node.name} {task_line(task, now)}"
        for node, now in zip(consumers, nows, strict=True)
        for task in node.running
    ]
    more = len(lines) - _SHOWN
    return _Busy(
        queue,
        depth,
        reserved,
        consumers,
        second.senders.get(queue, {}),
        age_s,
        [*lines[:_SHOWN], *([f"and {counted(more, 'task')} more"] if more > 0 else [])],
    )


def _ids(node: NodeState) -> set[str]:
    return {task.id for task in node.running}


def _clocks(fleet: Fleet, snapshot: Snapshot) -> dict[str, float]:
    """What time it is for each node whose host told its clock: it says by that clock when its tasks
    began.
    """
    states = snapshot.reachable()
    return {
        host.node(worker): states[host.name].clock_at
        for host in fleet.hosts
        if host.name in states
        for worker in host.settings.workers
    }


def _waits_for_itself(busy: _Busy) -> Finding:
    sent = sum(busy.senders[task.id] for task in busy.runs)
    of_queue = f"message of {busy.queue} that waits", f"messages of {busy.queue} that wait"
    return Finding(
        "worker.waits_for_itself",
        busy.queue,
        f"tasks that run on {busy.names} have sent {counted(sent, *of_queue)} behind them, "
        "and no process is free: if they wait for these, none of them ever ends",
        (
            *busy.told,
            "each of them is the parent (header parent_id) of messages that wait",
            (
                "a task must not wait for the result of another: use a chain or chord, or send"
                " subtasks to a queue of other workers"
            ),
            (
                f"to let them run now, start one more worker for {busy.queue}"
                if not busy.reserved
                else (
                    "the workers have fetched some of what waits already, which another one would"
                    f" not get: {Command('restart-workers', '--kill-running')} ends the tasks that"
                    f" wait; {_lost(busy.runs)}"
                )
            ),
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
            *busy.told,
            (
                "none of them ended between two looks; the limit is"
                f" {span(limit_s)} (celery_thresholds: runtime)"
            ),
            f"to free the workers now: {end} ends them with their tasks; {_lost(busy.runs)}",
            "task_time_limit in the application ends a task that hangs",
        ),
    )


def _lost(runs: Sequence[RunningTask]) -> str:
    """What becomes of what runs when it is killed."""
    lost = sum(task.acknowledged for task in runs)
    return (
        f"{lost} of {len(runs)} tasks are lost then"
        if lost
        else "their tasks are delivered again then"
    )


def _waiting(busy: _Busy) -> str:
    if not busy.reserved:
        return f"{counted(busy.depth, 'message waits', 'messages wait')} in {busy.queue}"
    of_queue = f"message of {busy.queue} waits", f"messages of {busy.queue} wait"
    in_workers = counted(busy.reserved, "is in a worker", "are in workers")
    return f"{counted(busy.depth + busy.reserved, *of_queue)} ({in_workers})"


# --- a worker hangs ---------------------------------------------------------------------------------------------------


def busy_processes(broker: BrokerState, now: float) -> dict[str, frozenset[int]]:
    """By node the processes that are at tasks, where none is free, none has ended one for long, and
    messages wait.
    """
    return {
        node.name: frozenset(task.pid for task in node.running if task.pid is not None)
        for node in broker.nodes.values()
        if _is_busy(node) and _age_s(node.running, now) > LONG_S and _behind(broker, node)
    }


def _behind(broker: BrokerState, node: NodeState) -> int:
    """How many messages wait in a node and in its queues."""
    return len(node.reserved) + sum(
        broker.queues[queue].depth for queue in node.queues & broker.queues.keys()
    )


def _locked(fleet: Fleet, snapshot: Snapshot) -> dict[str, tuple[str, frozenset[int]]]:
    """The workers of which every process waits for itself, by node, each with its host and these
    processes.
    """
    broker, states = snapshot.broker, snapshot.reachable()
    assert broker is not None
    pids = busy_processes(broker, snapshot.at)
    return {
        node: (host.name, pids[node])
        for host in fleet.hosts
        if host.name in states
        for worker in host.settings.workers
        if (node := host.node(worker)) in pids
        and pids[node]
        and pids[node] <= states[host.name].locked
    }


def _hang_by_themselves(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """**Source:** billiard 4.2.1 `pool.py: _join_exited_workers`: a process that ends is replaced."""
    broker = snapshot.broker
    assert broker is not None
    for name, (host, pids) in _locked(fleet, snapshot).items():
        node, now = broker.nodes[name], snapshot.reachable()[host].clock_at
        running = [f"inspect active: {task_line(task, now)}" for task in node.running]
        waiting = counted(_behind(broker, node), "message waits", "messages wait")
        yield Finding(
            "worker.hangs",
            name,
            f"every process of {name} hangs, for it waits for a lock that only it could release;"
            f" {waiting} behind them",
            (
                *running[:_SHOWN],
                *(
                    [f"and {counted(len(running) - _SHOWN, 'task')} more"]
                    if len(running) > _SHOWN
                    else []
                ),
                (
                    f"each thread of pid {', '.join(map(str, sorted(pids)))} waits without a time"
                    " limit for a lock that no other process can release, in two looks"
                    " (/proc/PID/task/TID/syscall)"
                ),
                f"to see where: py-spy dump --pid {min(pids)}, on {host}",
                (
                    f"to free the worker, on {host}: sudo kill -KILL"
                    f" {' '.join(map(str, sorted(pids)))}; it starts new processes;"
                    f" {_lost(node.running)}"
                ),
                "task_time_limit in the application ends a task that hangs",
            ),
        )


# --- a worker is idle -------------------------------------------------------------------------------------------------


def _of_idle_workers(broker: BrokerState, second: SecondLook, queue: str) -> Iterator[Finding]:
    """A worker that had nothing to do in both looks, while the same messages waited in its queue."""
    before = {node.name for node in _consumers(broker.nodes.values(), queue) if _is_idle(node)}
    idle = [
        node
        for node in _consumers(second.nodes.values(), queue)
        if _is_idle(node) and node.name in before
    ]
    if not idle or queue not in second.unmoved:
        return
    depth = broker.queues[queue].depth
    limits = {
        (place, task): node.rate_limits[task]
        for node in idle
        for place, task in second.held_back
        if place in node.queues and task in node.rate_limits
    }
    names = ", ".join(sorted(node.name for node in idle))
    waiting = counted(depth, "message waits", "messages wait")
    seen = f"the same message was next to run in {queue} for {span(second.after_s)}"
    if limits:
        yield Finding(
            "worker.rate_limited",
            queue,
            f"{waiting} in {queue} behind tasks that {names} holds back for their rate limit",
            (
                *(
                    f"{counted(second.held_back[of], 'message')} of {of[1]} from {of[0]}; its rate"
                    f" limit is {limit}"
                    for of, limit in sorted(limits.items())
                ),
                seen,
                (
                    "give tasks with a rate limit a queue and a worker of their own, or raise"
                    " rate_limit"
                ),
            ),
            severity=Severity.WARNING,
        )
        return
    yield Finding(
        "queue.not_taken",
        queue,
        f"{waiting} in {queue}, and {names} has nothing to do and takes none of them",
        (
            seen,
            f"inspect active, reserved, scheduled: nothing on {names}",
            *_why_not_taken(second, names),
        ),
    )


def _why_not_taken(second: SecondLook, names: str) -> Iterator[str]:
    """**Source:** Redis `BRPOP`: it returns at once where one of its lists holds anything."""
    if second.waiting_clients is None:
        yield "whether a client waits for messages is not known: CLIENT LIST is not allowed"
    elif second.waiting_clients:
        yield (
            f"{counted(second.waiting_clients, 'client waits', 'clients wait')} in BRPOP, so on"
            " other lists"
        )
        yield (
            "compare global_keyprefix, sep and priority_steps of the worker with"
            " celery_broker_options"
        )
    else:
        yield "no client of this db waits in BRPOP: the worker has stopped asking for messages"
        yield f"{Command('restart-workers')} lets {names} ask again"


# --- what a look at the nodes shows -----------------------------------------------------------------------------------


def _run_twice(nodes: Mapping[str, NodeState]) -> dict[str, list[str]]:
    """The ids of tasks that run on several nodes at once, with these."""
    where = defaultdict[str, list[str]](list)
    for name, node in nodes.items():
        for task in node.running:
            where[task.id].append(name)
    return {task: names for task, names in where.items() if len(names) > 1}


def _twice(fleet: Fleet, broker: BrokerState, second: SecondLook) -> Iterator[Finding]:
    """**Source:** kombu 5.7.0 `transport/redis.py: QoS.restore_visible`."""
    ids = _run_twice(broker.nodes).keys() & _run_twice(second.nodes).keys()
    by_task = defaultdict[str, list[tuple[str, str]]](list)
    for node in second.nodes.values():
        for task in node.running:
            if task.id in ids:
                by_task[task.name].append((task.id, node.name))
    limit = span(fleet.app.broker_options.visibility_timeout)
    for name, places in sorted(by_task.items()):
        count = len({id for id, _ in places})
        yield Finding(
            "task.runs_twice",
            name,
            f"{counted(count, f'task {name} runs', f'tasks {name} run')} on several workers at"
            " once",
            (
                *(f"inspect active: {id} on {node}" for id, node in sorted(places)[:_SHOWN]),
                (
                    f"a message that is not acknowledged {limit} after its fetch is delivered again"
                    " (visibility_timeout); with acks_late its task may still run by then"
                ),
                (
                    "raise visibility_timeout above the longest task, in the application's"
                    " broker_transport_options and in celery_broker_options, then restart the"
                    " workers"
                ),
            ),
        )


def _holds_etas(broker: BrokerState) -> Iterator[Finding]:
    """**Source:** celery 5.7.0 `worker/strategy.py`: each message with an ETA raises the prefetch
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
                    (
                        "a worker fetches every message with an ETA at once and keeps it in memory;"
                        " when it dies, they wait for the visibility timeout"
                    ),
                    (
                        "worker_eta_task_limit (Celery 5.6) bounds them; or send the tasks when"
                        " they are due"
                    ),
                ),
                severity=Severity.WARNING,
            )
