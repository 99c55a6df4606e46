"""Snapshot and history → what the monitor says of each queue and of the broker. Pure but for the history it asks."""

from collections.abc import Callable, Iterator, Sequence

from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, Finding, HostState, Look, QueueLook, QueueState, Severity, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import span
from runbooks.diagnosis.silence import busy_solo
from runbooks.monitoring.history import History


def look_of(fleet: Fleet, snapshot: Snapshot, history: History) -> Look:
    """The figures of a snapshot, without its findings."""
    broker, expected = snapshot.broker, frozenset(fleet.app.expected_tasks)
    assert broker is not None
    nodes = {host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers}
    busy = [nodes[name] for name in busy_solo(fleet, snapshot)]
    fetched_at = broker.oldest_unacked_at
    return Look(
        snapshot.at,
        fleet.app.app,
        reached=True,
        queues=tuple(_queue(snapshot.at, broker, state, history, busy) for state in broker.queues.values()),
        missing_tasks={name: len(expected - broker.nodes[name].registered) for name in nodes if name in broker.nodes},
        silent_nodes=tuple(name for name in nodes if name not in broker.nodes and nodes[name] not in busy),
        unacked=broker.unacked,
        unacked_age_s=0.0 if fetched_at is None else max(0.0, snapshot.at - fetched_at),
        beat_silence_s={name: s for name, state in snapshot.reachable().items() if (s := _silence(state)) is not None},
    )


def _queue(at: float, broker: BrokerState, state: QueueState, history: History, busy: Sequence[Worker]) -> QueueLook:
    """`busy` are the workers that do not answer and are at work all the same."""
    etas = [count.oldest_eta_at for count in state.by_task.values() if count.oldest_eta_at is not None]
    before = history.depth_before(state.name, at)
    consumed = (*(node.queues for node in broker.nodes.values()), *(worker.queues for worker in busy))
    return QueueLook(
        state.name,
        state.depth,
        state.unseen,
        consumers=sum(state.name in queues for queues in consumed),
        max_retries=max((count.max_retries_seen for count in state.by_task.values()), default=0),
        eta_overdue_s=max(0.0, at - min(etas)) if etas else 0.0,
        per_s=(state.depth - before[1]) / (at - before[0]) if before else None,
    )


def _silence(state: HostState) -> float | None:
    return None if state.beat_sent_at is None else max(0.0, state.clock_at - state.beat_sent_at)


def slow_to_drain(fleet: Fleet, queues: Sequence[QueueLook]) -> Iterator[Finding]:
    """The queues that would take too long to empty if they went on as they do.

    A queue that is served at once has some messages in it at any time, and never drains: only more than a tenth of the
    depth that is allowed are a backlog.
    """
    for queue in queues:
        limits, drain_s = fleet.app.thresholds.of(queue.name), queue.drain_s
        limit_s = limits.drain_time
        if limit_s is None or drain_s is None or queue.per_s is None or drain_s <= limit_s:
            continue
        if queue.depth * 10 <= limits.depth:
            continue
        grows = queue.per_s >= 0
        rate = f"{abs(queue.per_s) * 3600:,.0f} an hour {'more' if grows else 'fewer'} than at an earlier look"
        yield Finding(
            "queue.drain_time",
            queue.name,
            f"{queue.depth:,} messages wait and do not become fewer"
            if grows
            else f"{queue.depth:,} messages take {span(drain_s)} to drain at this rate, more than {span(limit_s)}",
            (rate,),
            severity=Severity.WARNING,
        )


def unsure(snapshot: Snapshot | None) -> Callable[[str, str], bool]:
    """Whether a finding that is not there may hold all the same, for its part could not be looked at."""

    def of(code: str, subject: str) -> bool:
        if snapshot is None or snapshot.broker is None:
            return code != "broker.unreachable"
        if code == "beat.silent":
            return subject in snapshot.hosts and subject not in snapshot.reachable()
        state = snapshot.broker.queues.get(subject)
        counted = ("queue.depth", "queue.no_consumer", "queue.drain_time", "queue.aside")
        return state is not None and state.unseen > 0 and code not in counted

    return of
