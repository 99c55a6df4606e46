"""Faults of the queues: nobody consumes them, messages that should not wait there, thresholds crossed."""

from collections.abc import Collection, Iterator, Sequence

from runbooks.broker.server.keys import readable
from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, Finding, QueueState, Severity, Snapshot
from runbooks.core.wording import span
from runbooks.diagnosis.services import changes_of
from runbooks.diagnosis.silence import busy_solo
from runbooks.diagnosis.taking import doubtful, take, take_unacked, takes_malformed


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding] = ()) -> Iterator[Finding]:
    """Every queue of the inventory in turn, then the lists that look like queues and are not in it.

    What starts the workers of one that nobody consumes are changes of the findings that are `known` already.
    """
    assert snapshot.broker is not None
    busy = busy_solo(fleet, snapshot)
    for state in snapshot.broker.queues.values():
        yield from _no_consumer(fleet, snapshot.broker, state, busy, known)
        yield from to_be_taken(fleet, snapshot, state)
        yield from _too_large(fleet, state)
        yield from _thresholds(fleet, snapshot, state)
    yield from _unacked(fleet, snapshot)
    yield from _orphaned(fleet, snapshot)
    yield from _hoarded(snapshot.broker, snapshot.at)
    yield from _redelivered(fleet, snapshot)
    yield from _other_lists(snapshot.broker)


def to_be_taken(fleet: Fleet, snapshot: Snapshot, state: QueueState) -> Iterator[Finding]:
    """What a rule means, what would kill a worker, and what a killed run has set aside: one change mends all of it."""
    change = take(fleet, state, snapshot.at)
    fix = (change,) if change else ()
    yield from _aside(state, fix)
    yield from _selected(state, fix)
    yield from _malformed(state, fix if takes_malformed(fleet, state) else ())
    yield from _unacked_selected(state, take_unacked(fleet, state, snapshot))


def _no_consumer(
    fleet: Fleet, broker: BrokerState, state: QueueState, busy: Collection[str], known: Sequence[Finding]
) -> Iterator[Finding]:
    if any(state.name in node.queues for node in broker.nodes.values()):
        return
    workers = ((host, worker) for host in fleet.hosts for worker in host.settings.workers)
    consuming = [(host, worker) for host, worker in workers if state.name in worker.queues]
    wanted = [host.node(worker) for host, worker in consuming]
    fix = changes_of(known, {(host.name, worker.name) for host, worker in consuming})
    if any(node in busy for node in wanted):
        return
    elsewhere = [worker.name for worker in fleet.all_workers if state.name in worker.queues and not wanted]
    who = ", ".join(wanted or elsewhere) or "no worker"
    lengths = ", ".join(f"LLEN {key!r} = {depth:,}" for key, depth in state.depths.items())
    waiting = f"{state.depth:,} messages wait in {state.name}" if state.depth else f"{state.name} is empty"
    yield Finding(
        "queue.no_consumer",
        state.name,
        f"{waiting} and no node consumes it",
        (
            *([lengths] if lengths else []),
            f"{len(broker.nodes)} {'node answers' if len(broker.nodes) == 1 else 'nodes answer'} "
            "and none lists it in active_queues"
            + "".join(f"; {name}: {', '.join(sorted(node.queues))}" for name, node in sorted(broker.nodes.items())),
            f"by the inventory {who}{' on a host outside --limit' if elsewhere else ''} should",
        ),
        remedy="start its workers" if fix else None,
        fix=fix,
        severity=_severity(state, wanted, elsewhere),
    )


def _severity(state: QueueState, wanted: Sequence[str], elsewhere: Sequence[str]) -> Severity:
    """A queue whose workers are on hosts outside of --limit is a fault, but none of those that were asked about."""
    if elsewhere and not wanted:
        return Severity.WARNING
    return Severity.ERROR if state.depth or wanted else Severity.INFO


def _aside(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    if state.aside:
        yield Finding(
            "queue.aside",
            state.name,
            f"{state.aside:,} messages of {state.name} are set aside by a run that is going on, or was killed",
            tuple(f"LLEN {key!r} = {depth:,}" for key, depth in state.depths.items()),
            remedy="bring them home (clean-queues does, or an undo of that run)",
            fix=fix,
            severity=Severity.WARNING,
        )


def _selected(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    for selection in state.selected:
        tasks = ", ".join(f"{count:,} × {task}" for task, count in selection.by_task.items())
        to = readable(selection.to) if selection.to else ""
        yield Finding(
            "queue.selected",
            state.name,
            f"{selection.count:,} of {state.depth:,} messages are to be {f'moved into {to}' if to else 'taken out'}: "
            f"{selection.reason}",
            (tasks, *(f"e.g. {sample.id} (retries {sample.retries})" for sample in selection.samples)),
            remedy=f"move them into {to}" if to else "take them out into the archive",
            fix=fix,
            severity=Severity.WARNING,
        )


def _unacked_selected(state: QueueState, change: Change | None) -> Iterator[Finding]:
    for selection in state.unacked:
        to = readable(selection.to) if selection.to else ""
        yield Finding(
            "queue.unacked_selected",
            state.name,
            f"{selection.count:,} messages of {state.name} that were fetched are held by no node that answers, and "
            f"are to be {f'moved into {to}' if to else 'taken out'}: {selection.reason}",
            tuple(f"{count:,} × {task}" for task, count in selection.by_task.items()),
            remedy=(f"move them into {to}" if to else "take them out into the archive") if change else None,
            fix=(change,) if change else (),
            severity=Severity.WARNING,
        )


def _malformed(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    if state.malformed.count:
        yield Finding(
            "queue.malformed",
            state.name,
            f"{state.malformed.count:,} items are no Celery messages; each kills the worker that pops it",
            state.malformed.raw_samples,
            remedy="take them out into the archive, byte for byte" if fix else None,
            fix=fix,
        )


def _too_large(fleet: Fleet, state: QueueState) -> Iterator[Finding]:
    if count := sum(state.too_large.values()):
        yield Finding(
            "queue.too_large",
            state.name,
            f"{count:,} compressed messages unpack to more than {fleet.app.unpack_limit} MiB: they are not read, and "
            "stay where they are; a worker that takes one unpacks all of it",
            tuple(f"{n:,} × {task or 'a task that was not read'}" for task, n in state.too_large.items()),
            severity=Severity.WARNING,
        )


def _thresholds(fleet: Fleet, snapshot: Snapshot, state: QueueState) -> Iterator[Finding]:
    limits = fleet.app.thresholds.of(state.name)
    if state.depth > limits.depth:
        yield Finding(
            "queue.depth",
            state.name,
            f"{state.depth:,} messages wait, more than {limits.depth:,}",
            tuple(f"{count.count:,} × {task}" for task, count in state.by_task.items()),
            severity=Severity.WARNING,
        )
    for task, count in state.by_task.items():
        if sum(selection.by_task.get(task, 0) for selection in state.selected) == count.count:
            continue  # a rule has found them already, with a reason of its own
        if count.max_retries_seen > limits.retries:
            yield Finding(
                "queue.retries",
                state.name,
                f"messages of {task} wait after {count.max_retries_seen} retries, more than {limits.retries}",
                (f"{count.count:,} × {task} wait",),
                severity=Severity.WARNING,
            )
        late_s = snapshot.at - count.oldest_eta_at if count.oldest_eta_at is not None else 0.0
        if late_s > limits.eta_overdue:
            yield Finding(
                "queue.eta_overdue",
                state.name,
                f"messages of {task} wait {span(late_s)} past their ETA, more than {span(limits.eta_overdue)}",
                (f"the ETA of {count.eta_passed:,} of {count.count:,} has passed",),
                severity=Severity.WARNING,
            )


def _unacked(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    broker, limit_s = snapshot.broker, fleet.app.thresholds.unacked_age
    if broker and broker.oldest_unacked_at is not None and snapshot.at - broker.oldest_unacked_at > limit_s:
        age_s = snapshot.at - broker.oldest_unacked_at
        yield Finding(
            "queue.unacked_age",
            "unacked",
            f"a message was fetched {span(age_s)} ago and not acknowledged since, more than {span(limit_s)}",
            (
                f"{broker.unacked:,} messages are fetched and not acknowledged",
                "it waits for its ETA, its task runs that long, or its worker was killed; after the visibility timeout "
                "Celery delivers it again",
            ),
            severity=Severity.WARNING,
        )


def _orphaned(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What a worker held when it was killed; nothing is said while one that may hold it does not answer."""
    broker = snapshot.broker
    assert broker is not None
    if doubtful(fleet, snapshot):
        return
    timeout_s = fleet.app.broker_options.visibility_timeout
    for queue, count in broker.orphans.items():
        back = Command("clean-queues", "--queue", queue, "--unacked", "--requeue-to", queue)
        yield Finding(
            "queue.orphaned",
            queue,
            f"{count:,} messages of {queue} were fetched by a worker that is gone, and wait until {span(timeout_s)} "
            f"after that; to give them back now: {back}",
            (
                f"{broker.unacked:,} messages are fetched and not acknowledged",
                "none of the nodes that answer lists these as active, reserved or scheduled; Celery delivers them "
                "again after the visibility timeout (celery_broker_options)",
            ),
            severity=Severity.WARNING,
        )


def _hoarded(broker: BrokerState, now: float) -> Iterator[Finding]:
    """What a worker fetched ahead of need while its processes run long tasks, and another of its queue does nothing.

    **Source:** celery 5.7.0 `worker/consumer/consumer.py: initial_prefetch_count`: worker_prefetch_multiplier × its
    processes; without acks_late what it has begun counts no more.
    """
    for hoard in broker.hoards:
        queue, waited_s = hoard.queue, now - hoard.since_at
        idle = sorted(n.name for n in broker.nodes.values() if queue in n.queues and n.holds == frozenset())
        if idle and waited_s > _HOARDED_S:
            yield Finding(
                "queue.hoarded",
                queue,
                f"{hoard.count:,} messages of {queue} wait in {hoard.node} for up to {span(waited_s)}, behind what it "
                "runs, while others are idle: set worker_prefetch_multiplier = 1, and task_acks_late = True for tasks "
                "that may run twice, or start workers with --disable-prefetch (Celery 5.6); then restart them",
                (f"inspect active, reserved, scheduled: nothing on {', '.join(idle)}",
                 f"inspect reserved: {hoard.count:,} of {queue} on {hoard.node}"),
                severity=Severity.WARNING,
            )  # fmt: skip


_HOARDED_S = 60.0
"""Shorter tasks than this are fetched ahead with good reason."""


def _redelivered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A worker holds a message from its fetch to its ETA, and what is held for too long is given back meanwhile."""
    assert snapshot.broker is not None
    limit_s = fleet.app.broker_options.visibility_timeout
    held_s = dict(snapshot.broker.held_s)
    for state in snapshot.broker.queues.values():
        for task, count in state.by_task.items():
            if count.furthest_eta_at is not None:
                held_s[task] = max(count.furthest_eta_at - snapshot.at, held_s.get(task, 0.0))
    for task, longest_s in held_s.items():
        if longest_s > limit_s:
            yield Finding(
                "queue.redelivered",
                task,
                f"messages of {task} are held for up to {span(longest_s)} until their ETA, but after {span(limit_s)} "
                "Celery delivers them again, so they run more than once",
                (
                    "countdown, ETA and retry delays have to be shorter than the visibility timeout: raise "
                    "visibility_timeout in the application's broker_transport_options, and in celery_broker_options",
                ),
                severity=Severity.WARNING,
            )


def _other_lists(broker: BrokerState) -> Iterator[Finding]:
    for key, (length, is_celery) in broker.other_lists.items():
        if is_celery:
            yield Finding(
                "queue.unknown",
                key,
                f"{length:,} Celery messages wait in {key!r}, which is no queue of the inventory",
                ("a misspelt route, a queue without a worker, or another application in this db; left alone",),
                severity=Severity.WARNING,
            )
        else:
            yield Finding(
                "queue.foreign_list",
                key,
                f"the list {key!r} ({length:,} items) is not Celery's; it is never touched",
                severity=Severity.INFO,
            )
