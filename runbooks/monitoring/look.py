"""Snapshot and history → what the monitor says about each queue and the broker."""

from collections.abc import Callable, Iterator, Sequence

from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    BrokerState,
    Finding,
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

_READABLE = (Trouble.FULL, Trouble.CANNOT_SAVE, Trouble.FEW_REPLICAS)
"""The broker can be read in spite of these."""
_WHY_UNSEEN = frozenset(f"broker.{one.value}" for one in Trouble if one not in _READABLE)
_OF_NODES = ("worker.", "task.", "message.", "schedule.")
_OF_THE_COUNT = ("queue.depth", "queue.no_consumer", "queue.drain_time", "queue.aside")
"""Findings that do not need the messages to be read."""


def look_of(fleet: Fleet, snapshot: Snapshot, history: History) -> Look:
    """The figures of a snapshot, without its findings."""
    broker = snapshot.broker
    assert broker is not None
    expected = frozenset(fleet.app.expected_tasks)
    beat_silence_s: dict[str, float] = {}
    for name, state in snapshot.reachable().items():
        if state.beat_sent_at is not None:
            beat_silence_s[name] = max(0.0, state.clock_at - state.beat_sent_at)
    if broker.unseen:
        return Look(snapshot.at, fleet.app.app, reached=False, beat_silence_s=beat_silence_s)
    nodes = {host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers}
    busy = [nodes[name] for name in busy_solo(fleet, snapshot)]
    restarted = fleet.nodes_of(snapshot.other_run.restarts or ()) if snapshot.other_run else ()
    spared = {*restarted, *(name for name, worker in nodes.items() if worker in busy)}
    silent = tuple(name for name in nodes if name not in broker.nodes and name not in spared)
    answering = {name: broker.nodes[name] for name in nodes if name in broker.nodes}
    answering |= fleet.nodes_by_pattern(broker.nodes)
    queues = [_queue(snapshot.at, broker, one, history, busy) for one in broker.queues.values()]
    unacked_age_s = 0.0
    if broker.oldest_unacked_at is not None:
        unacked_age_s = max(0.0, snapshot.at - broker.oldest_unacked_at)
    return Look(
        snapshot.at,
        fleet.app.app,
        reached=True,
        queues=tuple(queues),
        missing_tasks={name: len(expected - node.registered) for name, node in answering.items()},
        silent_nodes=() if broker.unasked else silent,
        unacked=broker.unacked,
        unacked_age_s=unacked_age_s,
        beat_silence_s=beat_silence_s,
    )


def _queue(
    at: float, broker: BrokerState, state: QueueState, history: History, busy: Sequence[Worker]
) -> QueueLook:
    """A queue as the look sees it; `busy` are workers that work although they do not answer."""
    counts = state.by_task.values()
    etas = [one.oldest_eta_at for one in counts if one.oldest_eta_at is not None]
    return QueueLook(
        state.name,
        state.depth,
        state.unseen,
        consumers=_consumers(broker, state.name, busy),
        max_retries=max((one.max_retries_seen for one in counts), default=0),
        eta_overdue_s=max(0.0, at - min(etas, default=at)),
        per_s=_rate(at, state, history),
    )


def _consumers(broker: BrokerState, queue: str, busy: Sequence[Worker]) -> int | None:
    if broker.unasked:
        return None
    nodes = [node for node in broker.nodes.values() if queue in node.queues]
    workers = [worker for worker in busy if queue in worker.queues]
    return len(nodes) + len(workers)


def _rate(at: float, state: QueueState, history: History) -> float | None:
    before = history.depth_before(state.name, at, state.depth)
    if not before:
        return None
    before_at, before_depth = before
    return (state.depth - before_depth) / (at - before_at)


def slow_to_drain(
    fleet: Fleet, broker: BrokerState, queues: Sequence[QueueLook]
) -> Iterator[Finding]:
    """The queues that take too long to empty at their present rate.

    A queue that is served at once always has some messages and never drains, so only more than a
    tenth of the allowed depth is a backlog.
    """
    for queue in queues:
        limits = fleet.app.thresholds.of(queue.name)
        limit_s = limits.drain_time
        drain_s = queue.drain_s
        if limit_s is None or drain_s is None or queue.per_s is None or drain_s <= limit_s:
            continue
        if queue.depth * 10 <= limits.depth:
            continue
        if queue.per_s >= 0:
            summary = counted(
                queue.depth,
                "message waits and does not drain",
                "messages wait and do not drain",
            )
            change = "more"
        else:
            messages = counted(queue.depth, "message takes", "messages take")
            summary = f"{messages} {span(drain_s)} to drain at this rate, more than {span(limit_s)}"
            change = "fewer"
        rate = f"{abs(queue.per_s) * 3600:,.0f} an hour {change} than at an earlier look"
        yield Finding(
            "queue.drain_time",
            queue.name,
            summary,
            (rate, *_rate_limits(broker, queue.name)),
            severity=Severity.WARNING,
        )


def _rate_limits(broker: BrokerState, queue: str) -> Iterator[str]:
    """The tasks of a queue that have a rate limit on its nodes, however many messages wait."""
    nodes = [node for node in broker.nodes.values() if queue in node.queues]
    for task, count in broker.queues[queue].by_task.items():
        limits = [
            f"{node.rate_limits[task]} on {node.name}" for node in nodes if task in node.rate_limits
        ]
        if limits:
            yield f"{count.count:,} × {task}, whose rate limit is {', '.join(limits)}"


def unsure(snapshot: Snapshot) -> Callable[[str, str], bool]:
    """Whether a finding that is missing may still stand, because its part could not be checked."""
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
        return state is not None and state.unseen > 0 and code not in _OF_THE_COUNT

    return of
