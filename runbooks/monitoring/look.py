"""Snapshot and history → what the monitor says of each queue and of the broker. Pure but for the
history it asks.
"""

from collections.abc import Callable, Iterator, Sequence

from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    BrokerState,
    Finding,
    HostState,
    Look,
    QueueLook,
    QueueState,
    Severity,
    Snapshot,
)
from runbooks.core.settings import Worker
from runbooks.core.wording import counted, span
from runbooks.diagnosis.other_run import MAY_BE_ITS_DOING
from runbooks.diagnosis.silence import busy_solo
from runbooks.monitoring.history import History


def look_of(fleet: Fleet, snapshot: Snapshot, history: History) -> Look:
    """The figures of a snapshot, without its findings."""
    broker, expected = snapshot.broker, frozenset(fleet.app.expected_tasks)
    assert broker is not None
    beat_silence_s = {
        name: s
        for name, state in snapshot.reachable().items()
        if (s := _silence(state)) is not None
    }
    if broker.unseen:
        return Look(snapshot.at, fleet.app.app, reached=False, beat_silence_s=beat_silence_s)
    nodes = {host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers}
    busy = [nodes[name] for name in busy_solo(fleet, snapshot)]
    restarted = fleet.nodes_of(snapshot.other_run.restarts or ()) if snapshot.other_run else ()
    spared = {*restarted, *(name for name, worker in nodes.items() if worker in busy)}
    silent = tuple(name for name in nodes if name not in broker.nodes and name not in spared)
    answering = {name: broker.nodes[name] for name in nodes if name in broker.nodes}
    answering |= fleet.nodes_by_pattern(broker.nodes)
    fetched_at = broker.oldest_unacked_at
    return Look(
        snapshot.at,
        fleet.app.app,
        reached=True,
        queues=tuple(
            _queue(snapshot.at, broker, state, history, busy) for state in broker.queues.values()
        ),
        missing_tasks={name: len(expected - node.registered) for name, node in answering.items()},
        silent_nodes=() if broker.unasked else silent,
        unacked=broker.unacked,
        unacked_age_s=0.0 if fetched_at is None else max(0.0, snapshot.at - fetched_at),
        beat_silence_s=beat_silence_s,
    )


def _queue(
    at: float, broker: BrokerState, state: QueueState, history: History, busy: Sequence[Worker]
) -> QueueLook:
    """`busy` are the workers that do not answer and are at work all the same."""
    etas = [
        count.oldest_eta_at for count in state.by_task.values() if count.oldest_eta_at is not None
    ]
    before = history.depth_before(state.name, at, state.depth)
    consumed = (
        *(node.queues for node in broker.nodes.values()),
        *(worker.queues for worker in busy),
    )
    return QueueLook(
        state.name,
        state.depth,
        state.unseen,
        consumers=None if broker.unasked else sum(state.name in queues for queues in consumed),
        max_retries=max((count.max_retries_seen for count in state.by_task.values()), default=0),
        eta_overdue_s=max(0.0, at - min(etas)) if etas else 0.0,
        per_s=(state.depth - before[1]) / (at - before[0]) if before else None,
    )


def _silence(state: HostState) -> float | None:
    return None if state.beat_sent_at is None else max(0.0, state.clock_at - state.beat_sent_at)


def slow_to_drain(
    fleet: Fleet, broker: BrokerState, queues: Sequence[QueueLook]
) -> Iterator[Finding]:
    """The queues that would take too long to empty if they went on as they do.

    A queue that is served at once has some messages in it at any time, and never drains: only more
    than a tenth of the depth that is allowed are a backlog.
    """
    for queue in queues:
        limits, drain_s = fleet.app.thresholds.of(queue.name), queue.drain_s
        limit_s = limits.drain_time
        if limit_s is None or drain_s is None or queue.per_s is None or drain_s <= limit_s:
            continue
        if queue.depth * 10 <= limits.depth:
            continue
        grows = queue.per_s >= 0
        rate = (
            f"{abs(queue.per_s) * 3600:,.0f} an hour {'more' if grows else 'fewer'} than at an"
            " earlier look"
        )
        yield Finding(
            "queue.drain_time",
            queue.name,
            (
                counted(
                    queue.depth, "message waits and stays", "messages wait and do not become fewer"
                )
                if grows
                else (
                    f"{counted(queue.depth, 'message takes', 'messages take')} {span(drain_s)} to"
                    f" drain at this rate, more than {span(limit_s)}"
                )
            ),
            (rate, *_rate_limits(broker, queue.name)),
            severity=Severity.WARNING,
        )


def _rate_limits(broker: BrokerState, queue: str) -> Iterator[str]:
    """Those of a queue's tasks of which its nodes run only so many in a time, however many wait."""
    nodes = [node for node in broker.nodes.values() if queue in node.queues]
    for task, count in broker.queues[queue].by_task.items():
        limits = [
            f"{node.rate_limits[task]} on {node.name}" for node in nodes if task in node.rate_limits
        ]
        if limits:
            yield f"{count.count:,} × {task}, whose rate limit is {', '.join(limits)}"


def unsure(snapshot: Snapshot) -> Callable[[str, str], bool]:
    """Whether a finding that is not there may hold all the same, for its part could not be looked
    at.
    """
    broker = snapshot.broker
    assert broker is not None

    def of(code: str, subject: str) -> bool:
        if snapshot.other_run and code in MAY_BE_ITS_DOING:
            return True
        if code == "beat.silent" and snapshot.hosts:
            return subject in snapshot.hosts and subject not in snapshot.reachable()
        if broker.unseen:
            return code not in _WHY_UNSEEN
        if broker.unasked and (code.startswith(_OF_NODES) or code == "queue.no_consumer"):
            return True
        state = broker.queues.get(subject)
        counted = ("queue.depth", "queue.no_consumer", "queue.drain_time", "queue.aside")
        return state is not None and state.unseen > 0 and code not in counted

    return of


_WHY_UNSEEN = frozenset(
    f"broker.{trouble.value}"
    for trouble in Trouble
    if trouble
    not in (Trouble.FULL, Trouble.CANNOT_SAVE, Trouble.FEW_REPLICAS)  # with these it can be read
)
_OF_NODES = ("worker.", "task.", "message.", "schedule.")
