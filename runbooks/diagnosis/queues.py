"""Faults of the queues: no consumers, messages that should not wait there, thresholds crossed."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from runbooks.broker.server.keys import readable
from runbooks.core.application import Application
from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    BrokerState,
    Finding,
    NodeState,
    QueueState,
    Selection,
    Severity,
    Snapshot,
    Stray,
)
from runbooks.core.wording import counted, enumerated, span, them, utc
from runbooks.diagnosis.services import changes_of
from runbooks.diagnosis.silence import busy_solo, settling
from runbooks.diagnosis.taking import doubtful, take, take_unacked, takes_malformed

_WAIT = ("message waits", "messages wait")
_NOT_MESSAGES = ("item is not a Celery message", "items are not Celery messages")
_ARE = ("message is", "messages are")
_HOARDED_S = 60.0
"""Messages are fetched in advance for less than this with good reason."""
_FEW_EXPIRED = 10
_DEFAULT_VISIBILITY_S = 3600.0
"""**Source:** kombu 5.7.0 `transport/redis.py: Channel.visibility_timeout`."""
_CLOSE = 0.75
"""How alike two names of queues have to be, from 0 to 1, for "did you mean"."""
_MOST_ORIGINS = 5
_UNREAD = "a task whose name was not read"
_UNSENT = (
    "neither the schedule nor a route leads there: a call names this queue, or another application"
    " uses this db"
)


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding] = ()) -> Iterator[Finding]:
    """Find the faults of each queue of the inventory, then of lists that look like queues.

    If no one consumes a queue, the changes that start its workers come from the findings that are
    `known` already.
    """
    assert snapshot.broker is not None
    busy = busy_solo(fleet, snapshot) | settling(fleet, snapshot)
    for state in snapshot.broker.queues.values():
        yield from _no_consumer(fleet, snapshot.broker, state, busy, known)
        yield from _few_consumers(fleet, snapshot.broker, state, busy)
        yield from _sampled(state)
        yield from to_be_taken(fleet, snapshot, state)
        yield from _too_large(fleet, state)
        yield from _expired(state)
        yield from _thresholds(fleet, snapshot, state)
    yield from _unacked(fleet, snapshot)
    yield from _orphaned(fleet, snapshot)
    yield from _hoarded(snapshot.broker, snapshot.at)
    yield from _naive_etas(snapshot.broker)
    yield from _redelivered(fleet, snapshot)
    yield from _other_lists(fleet, snapshot)
    yield from _unbound(snapshot.broker)
    yield from _given_back_early(fleet, snapshot.broker)


def to_be_taken(fleet: Fleet, snapshot: Snapshot, state: QueueState) -> Iterator[Finding]:
    """Find messages that rules select, that kill workers, or that a killed run has set aside.

    One change fixes all of them.
    """
    change = take(fleet, state, snapshot.at)
    fix = (change,) if change else ()
    yield from _aside(state, fix)
    yield from _selected(state, fix)
    yield from _malformed(state, fix if takes_malformed(fleet, state) else ())
    yield from _unacked_selected(state, take_unacked(fleet, state, snapshot))


def _no_consumer(
    fleet: Fleet,
    broker: BrokerState,
    state: QueueState,
    busy: Collection[str],
    known: Sequence[Finding],
) -> Iterator[Finding]:
    expected = fleet.app.queues.get(state.name)
    count = expected.consumers if expected else 0
    needs_none = expected is not None and count == 0
    if needs_none or _consumers(broker, state.name):
        return
    workers = ((host, worker) for host in fleet.hosts for worker in host.settings.workers)
    consuming = [(host, worker) for host, worker in workers if state.name in worker.queues]
    wanted = [host.node(worker) for host, worker in consuming]
    if any(node in busy for node in wanted):
        return
    elsewhere = []
    if not wanted:
        elsewhere = [one.name for one in fleet.all_workers if state.name in one.queues]
    summary = f"{state.name} is empty and no node consumes it"
    if state.depth:
        summary = f"{counted(state.depth, *_WAIT)} in {state.name} and no node consumes it"
        if not (count or consuming or elsewhere):
            summary += _did_you_mean(_near(fleet, broker, state.name))
    evidence = []
    if state.depths:
        evidence.append(", ".join(_lengths(state)))
    evidence.append(_consumed_instead(broker))
    if not fleet.found:
        evidence.append(_expected_consumers(wanted, elsewhere, count))
    fix = changes_of(known, {(host.name, worker.known_as) for host, worker in consuming})
    yield Finding(
        "queue.no_consumer",
        state.name,
        summary,
        tuple(evidence),
        remedy="start its workers" if fix else None,
        fix=fix,
        severity=Severity.ERROR if count else _severity(state, wanted, elsewhere),
    )


def _consumers(broker: BrokerState, queue: str) -> list[NodeState]:
    return [node for node in broker.nodes.values() if queue in node.queues]


def _lengths(state: QueueState) -> list[str]:
    return [f"LLEN {key!r} = {depth:,}" for key, depth in state.depths.items()]


def _by_task(counts: Mapping[str, int]) -> list[str]:
    """List how many messages there are of each task, for the evidence."""
    return [f"{count:,} × {task}" for task, count in counts.items()]


def _did_you_mean(near: str) -> str:
    return f"; did you mean '{near}'?" if near else ""


def _consumed_instead(broker: BrokerState) -> str:
    """The queues that the nodes do consume, for the evidence."""
    answer = counted(len(broker.nodes), "node answers", "nodes answer")
    parts = [f"{answer} and none lists it in active_queues"]
    for name, node in sorted(broker.nodes.items()):
        parts.append(f"{name}: {', '.join(sorted(node.queues))}")
    return "; ".join(parts)


def _expected_consumers(wanted: Sequence[str], elsewhere: Sequence[str], count: int) -> str:
    """The workers that the inventory expects at a queue, for the evidence."""
    if wanted:
        return f"the inventory expects {', '.join(wanted)} to consume it"
    if elsewhere:
        names = ", ".join(elsewhere)
        return f"the inventory expects {names} to consume it, on a host that was not checked"
    if count:
        return f"the inventory expects {counted(count, 'worker')} to consume it"
    return "the inventory expects no worker to consume it"


def _few_consumers(
    fleet: Fleet, broker: BrokerState, state: QueueState, busy: Collection[str]
) -> Iterator[Finding]:
    """Find a queue with some consumers, but fewer than `celery_queues` expects.

    A busy solo worker does not answer, and counts as a consumer.
    """
    expected = fleet.app.queues.get(state.name)
    nodes = sorted(_consumers(broker, state.name), key=lambda node: node.name)
    at_task = [
        name for name, worker in fleet.workers if name in busy and state.name in worker.queues
    ]
    count = sum(max(node.twins, len(node.names)) for node in nodes) + len(at_task)
    if expected and 0 < count < expected.consumers:
        names = ", ".join((*(node.name for node in nodes), *at_task))
        yield Finding(
            "queue.few_consumers",
            state.name,
            f"{counted(count, 'worker consumes', 'workers consume')} {state.name}, and the"
            f" inventory expects {expected.consumers:,}",
            (f"inspect active_queues: {names}", "the number is in celery_queues of the inventory"),
        )


def _severity(state: QueueState, wanted: Sequence[str], elsewhere: Sequence[str]) -> Severity:
    """Judge a queue without a consumer: only a warning if its workers are outside --limit."""
    if elsewhere and not wanted:
        return Severity.WARNING
    return Severity.ERROR if state.depth or wanted else Severity.INFO


def _sampled(state: QueueState) -> Iterator[Finding]:
    if state.unseen:
        yield Finding(
            "queue.sampled",
            state.name,
            f"only {state.depth - state.unseen:,} of {counted(state.depth, 'message')} in"
            f" {state.name} were read in time: findings about its messages are based on a sample",
            (
                "read: the newest, some from the middle, and the oldest of each list",
                "--budget allows more time; a plan reads everything",
            ),
            severity=Severity.INFO,
        )


def _at_least(state: QueueState) -> str:
    return "at least " if state.unseen else ""


def _aside(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    if state.aside:
        yield Finding(
            "queue.aside",
            state.name,
            f"{counted(state.aside, *_ARE)} set aside from {state.name} by a run that is going on"
            " or was killed",
            tuple(_lengths(state)),
            remedy="return them to the queue (clean-queues does, or an undo of that run)",
            fix=fix,
            severity=Severity.WARNING,
        )


def _fate(selection: Selection) -> str:
    """What a rule does with the messages that it selects, as a participle."""
    return f"moved into {readable(selection.to)}" if selection.to else "archived"


def _remedy(selection: Selection) -> str:
    return f"move them into {readable(selection.to)}" if selection.to else "archive them"


def _selected(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    of = counted(state.depth, "message")
    for selection in state.selected:
        which = counted(selection.count, f"of {of} is", f"of {of} are")
        tasks = ", ".join(_by_task(selection.by_task))
        samples = [f"e.g. {one.id} (retries {one.retries})" for one in selection.samples]
        yield Finding(
            "queue.selected",
            state.name,
            f"{_at_least(state)}{which} to be {_fate(selection)}: {selection.reason}",
            (tasks, *samples),
            remedy=_remedy(selection),
            fix=fix,
            severity=Severity.WARNING,
        )


def _unacked_selected(state: QueueState, change: Change | None) -> Iterator[Finding]:
    for selection in state.unacked:
        which = counted(
            selection.count,
            f"message of {state.name}, fetched and held by no node that answers, is",
            f"messages of {state.name}, fetched and held by no node that answers, are",
        )
        yield Finding(
            "queue.unacked_selected",
            state.name,
            f"{which} to be {_fate(selection)}: {selection.reason}",
            tuple(_by_task(selection.by_task)),
            remedy=_remedy(selection) if change else None,
            fix=(change,) if change else (),
            severity=Severity.WARNING,
        )


def _malformed(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    if state.malformed.count:
        yield Finding(
            "queue.malformed",
            state.name,
            f"{_at_least(state)}{counted(state.malformed.count, *_NOT_MESSAGES)}; each kills the"
            " worker that pops it",
            state.malformed.raw_samples,
            remedy="archive them, byte for byte" if fix else None,
            fix=fix,
        )


def _too_large(fleet: Fleet, state: QueueState) -> Iterator[Finding]:
    count = sum(state.too_large.values())
    if count:
        unpack = counted(count, "compressed message unpacks", "compressed messages unpack")
        yield Finding(
            "queue.too_large",
            state.name,
            f"{unpack} to more than {fleet.app.unpack_limit} MiB: not read; a worker that takes one"
            " unpacks the whole message",
            tuple(_by_task({task or _UNREAD: size for task, size in state.too_large.items()})),
            severity=Severity.WARNING,
        )


def _thresholds(fleet: Fleet, snapshot: Snapshot, state: QueueState) -> Iterator[Finding]:
    limits = fleet.app.thresholds.of(state.name)
    if state.depth > limits.depth:
        yield Finding(
            "queue.depth",
            state.name,
            f"{counted(state.depth, *_WAIT)}, more than {limits.depth:,}",
            tuple(_by_task({task: count.count for task, count in state.by_task.items()})),
            severity=Severity.WARNING,
        )
    for task, count in state.by_task.items():
        if sum(selection.by_task.get(task, 0) for selection in state.selected) == count.count:
            continue  # a rule has found them already, with a reason of its own
        if count.max_retries_seen > limits.retries:
            retries = counted(count.max_retries_seen, "retry", "retries")
            yield Finding(
                "queue.retries",
                state.name,
                f"messages of {task} wait after {retries}, more than {limits.retries}",
                (f"{count.count:,} × {task}",),
                severity=Severity.WARNING,
            )
        if count.oldest_eta_at is None:
            continue
        late_s = snapshot.at - count.oldest_eta_at
        if late_s > limits.eta_overdue:
            yield Finding(
                "queue.eta_overdue",
                state.name,
                f"messages of {task} wait {span(late_s)} past their ETA, more than"
                f" {span(limits.eta_overdue)}",
                (f"the ETA of {count.eta_passed:,} of {count.count:,} has passed",),
                severity=Severity.WARNING,
            )


def _unacked(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    broker = snapshot.broker
    if not broker or broker.oldest_unacked_at is None:
        return
    age_s = snapshot.at - broker.oldest_unacked_at
    limit_s = fleet.app.thresholds.unacked_age
    if age_s > limit_s:
        yield Finding(
            "queue.unacked_age",
            "unacked",
            f"a message was fetched {span(age_s)} ago and is still not acknowledged, more than"
            f" {span(limit_s)}",
            (
                f"{counted(broker.unacked, *_ARE)} fetched and not acknowledged",
                "it waits for its ETA, its task takes that long, or its worker was killed; Celery"
                " delivers it again after the visibility timeout",
            ),
            severity=Severity.WARNING,
        )


def _orphaned(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find messages of killed workers; nothing while a node that may hold them is silent."""
    broker = snapshot.broker
    assert broker is not None
    if doubtful(fleet, snapshot):
        return
    timeout_s = fleet.app.broker_options.visibility_timeout
    for queue, orphans in broker.orphans.items():
        count = orphans - _selected_of_unacked(broker, queue)
        if count <= 0:
            continue  # a rule has found them already, with a reason of its own
        if fleet.found:
            yield _held_by_none(broker, queue, count)
            continue
        back = Command("clean-queues", "--queue", queue, "--unacked", "--requeue-to", queue)
        which = counted(count, f"message of {queue} was", f"messages of {queue} were")
        yield Finding(
            "queue.orphaned",
            queue,
            f"{which} fetched by a worker that no longer exists; Celery delivers {them(count)}"
            f" again {span(timeout_s)} after that; to return {them(count)} to the queue now:"
            f" {back}",
            (
                f"{counted(broker.unacked, *_ARE)} fetched and not acknowledged",
                "no node that answers lists these as active, reserved or scheduled; Celery delivers"
                " them again after the visibility timeout (celery_broker_options)",
            ),
            severity=Severity.WARNING,
        )


def _selected_of_unacked(broker: BrokerState, queue: str) -> int:
    state = broker.queues.get(queue)
    selections = state.unacked if state else ()
    return sum(selection.count for selection in selections)


def _held_by_none(broker: BrokerState, queue: str, count: int) -> Finding:
    """Without an inventory, a node that is not known and does not answer may hold them."""
    which = counted(count, f"message of {queue} was", f"messages of {queue} were")
    return Finding(
        "queue.orphaned",
        queue,
        f"{which} fetched, and no node that answers holds {them(count)}",
        (
            f"{counted(broker.unacked, *_ARE)} fetched and not acknowledged",
            "their worker was killed, or runs a task in a pool that answers nothing meanwhile"
            " (solo)",
        ),
        severity=Severity.WARNING,
    )


def _hoarded(broker: BrokerState, now: float) -> Iterator[Finding]:
    """Find messages that a busy worker fetched in advance, while another of the queue is idle.

    **Source:** celery 5.7.0 `worker/consumer/consumer.py: initial_prefetch_count`:
    worker_prefetch_multiplier × its processes; without acks_late, begun tasks no longer count.
    """
    for hoard in broker.hoards:
        queue = hoard.queue
        waited_s = now - hoard.since_at
        consumers = _consumers(broker, queue)
        idle = sorted(node.name for node in consumers if node.holds == frozenset())
        if not idle or waited_s <= _HOARDED_S:
            continue
        wait = counted(hoard.count, f"message of {queue} waits", f"messages of {queue} wait")
        yield Finding(
            "queue.hoarded",
            queue,
            f"{wait} in {hoard.node} for up to {span(waited_s)}, behind its running tasks, while"
            " other workers are idle: set worker_prefetch_multiplier = 1, and task_acks_late = True"
            " for tasks that may run twice, or start workers with --disable-prefetch (Celery 5.6);"
            " then restart them",
            (
                f"inspect active, reserved, scheduled: nothing on {', '.join(idle)}",
                f"inspect reserved: {hoard.count:,} of {queue} on {hoard.node}",
            ),
            severity=Severity.WARNING,
        )


def _naive_etas(broker: BrokerState) -> Iterator[Finding]:
    for task, naive in broker.naive_etas.items():
        wait = counted(naive.count, f"message of {task} waits", f"messages of {task} wait")
        evidence = [f"header eta: {naive.eta}"]
        if naive.origins:
            evidence.append(f"sent by {', '.join(naive.origins[:_MOST_ORIGINS])}")
        evidence += [
            "datetime.now() has no zone: send datetime.now(UTC) + …, or a countdown",
            "the messages that wait keep their time: revoke each so that the worker discards it"
            f" ({Command('revoke', 'ID')}), and send it again",
        ]
        yield Finding(
            "message.naive_eta",
            task,
            f"{wait} for an ETA without a time zone, up to {utc(naive.at)}: workers read it as UTC,"
            " so if the sender meant local time they run it hours too late",
            tuple(evidence),
            severity=Severity.WARNING,
        )


def _redelivered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find messages that are held until an ETA that is later than the visibility timeout."""
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
                f"messages of {task} are held for up to {span(longest_s)} until their ETA, but"
                f" after {span(limit_s)} Celery delivers them again, so they run more than once",
                (
                    "countdown, ETA and retry delays have to be shorter than the visibility"
                    " timeout: raise visibility_timeout in the application's"
                    " broker_transport_options, and in celery_broker_options",
                ),
                severity=Severity.WARNING,
            )


def _expired(state: QueueState) -> Iterator[Finding]:
    """Find a queue of which half or more has expired.

    **Source:** celery 5.7.0 `worker/request.py: Request.maybe_expire`: such a task is revoked when
    it is taken.
    """
    expired = {task: count.expired for task, count in state.by_task.items() if count.expired}
    read = sum(count.count for count in state.by_task.values())
    late = sum(expired.values())
    if late >= _FEW_EXPIRED and 2 * late >= read:
        yield Finding(
            "queue.expired",
            state.name,
            f"{late:,} of {counted(read, 'message')} in {state.name} have expired: the worker that"
            " takes them discards them without running them",
            (
                *_by_task(dict(sorted(expired.items()))),
                "they waited for longer than their sender allowed (expires): add workers, or send"
                " with a longer expires",
                f"to see them: {Command('messages', '--queue', state.name)}",
            ),
            severity=Severity.WARNING,
        )


def _given_back_early(fleet: Fleet, broker: BrokerState) -> Iterator[Finding]:
    """Find workers of other applications that return messages of this one too early.

    **Source:** kombu 5.7.0 `transport/redis.py: QoS.restore_visible`: the unacknowledged messages
    of a db are in one index, and each worker returns all that are older than its own visibility
    timeout, also those of other workers.
    """
    ours_s = fleet.app.broker_options.visibility_timeout
    own = {*fleet.all_nodes, *fleet.nodes_by_pattern(broker.nodes)}
    for name, node in sorted(broker.nodes.items()):
        consumes_ours = node.queues & frozenset(fleet.consumed)
        if name in own or node.options is None or consumes_ours:
            continue
        its_s = node.options.get("visibility_timeout", _DEFAULT_VISIBILITY_S)
        if its_s >= ours_s:
            continue
        yield Finding(
            "worker.gives_back_early",
            name,
            f"{name} is not a worker of the inventory and uses this db with a visibility timeout of"
            f" {span(its_s)}: after that it returns messages that the inventory's workers, which"
            f" allow {span(ours_s)}, still run",
            (
                f"inspect conf: visibility_timeout {its_s:g} s",
                f"inspect active_queues: {', '.join(sorted(node.queues))}",
                "use a separate db for each application, or the same visibility_timeout for both",
            ),
        )


def _unbound(broker: BrokerState) -> Iterator[Finding]:
    """Find queues that are no longer bound to their exchange.

    **Source:** celery 5.7.0 `app/amqp.py: AMQP._create_task_sender`: a message that is sent to a
    queue of a direct exchange by the queue's name goes there without the exchange's table.
    """
    for one in broker.unbound:
        consuming = [node.name for node in broker.nodes.values() if one in node.bindings]
        nodes = ", ".join(sorted(consuming))
        evidence = [
            f"inspect active_queues: {nodes} consumes it from exchange {one.exchange} ({one.kind})",
            f"SMEMBERS _kombu.binding.{one.exchange} does not have it",
        ]
        if one.kind == "direct":
            evidence.append("messages that are sent to the queue by its name still arrive")
        evidence.append(f"a worker binds its queues when it starts: {Command('restart-workers')}")
        yield Finding(
            "queue.unbound",
            one.queue,
            f"{one.queue} is no longer bound to exchange {one.exchange}: messages that are sent to"
            f" that exchange with the routing key {one.routing_key!r} are dropped",
            tuple(evidence),
            severity=Severity.WARNING if one.kind == "direct" else Severity.ERROR,
        )


def _other_lists(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    assert snapshot.broker is not None
    of_queues = dict[tuple[str, str], dict[str, Stray]]()
    for key, (length, is_celery) in snapshot.broker.other_lists.items():
        if not is_celery:
            yield Finding(
                "queue.foreign_list",
                key,
                f"the list {key!r} ({counted(length, 'item')}) does not belong to Celery; it is"
                " never changed",
                severity=Severity.INFO,
            )
            continue
        stray = snapshot.broker.strays.get(key) or Stray(key, 0, 0, {}, {})
        if _is_unpolled(fleet, snapshot.broker, stray):
            of_queues.setdefault((stray.queue, stray.sep), {})[key] = stray
        else:
            yield _unknown(fleet, snapshot, key, length, stray)
    for (queue, sep), strays in of_queues.items():
        yield _unpolled(fleet, snapshot, queue, sep, strays)


def _is_unpolled(fleet: Fleet, broker: BrokerState, stray: Stray) -> bool:
    """Whether the list belongs to a queue with consumers, none of which polls this list."""
    consumers = _consumers(broker, stray.queue)
    if not consumers and stray.queue not in fleet.consumed:
        return False
    return bool(stray.sep) or stray.priority not in _polled(fleet, consumers)


def _unpolled(
    fleet: Fleet, snapshot: Snapshot, queue: str, sep: str, strays: Mapping[str, Stray]
) -> Finding:
    """Report the lists of one queue that no worker polls; `strays` has them by their keys."""
    assert snapshot.broker is not None
    consumers = _consumers(snapshot.broker, queue)
    keys = sorted(strays, key=lambda key: strays[key].priority)
    waiting = counted(sum(snapshot.broker.other_lists[key][0] for key in keys), *_WAIT)
    lists: list[tuple[str, ...]]
    if sep:
        lists = [("--queue", key) for key in keys]
        whose = fleet.worded("the inventory has", "this tool assumes")
        summary = (
            f"{waiting} in {enumerated(keys)}, which is {queue} with another separator, so no"
            " worker polls it"
        )
        advice = (
            f"the sender has the sep {sep!r} in broker_transport_options, and {whose}"
            f" {fleet.app.broker_options.sep!r}: use the same on both sides"
        )
    else:
        priorities = [str(strays[key].priority) for key in keys]
        lists = [("--queue", queue, "--priority", priority) for priority in priorities]
        usual = " with Celery's own priority_steps" if fleet.found and not consumers else ""
        steps = ", ".join(map(str, sorted(_polled(fleet, consumers))))
        summary = (
            f"{waiting} as priority {enumerated(priorities)} of {queue}, which no worker{usual}"
            " polls"
        )
        advice = (
            f"workers poll the priorities {steps}: set the same priority_steps in the sender's"
            " broker_transport_options"
        )
    evidence = _contents(strays.values())
    evidence += dict.fromkeys(_senders(snapshot, queue))
    evidence.append(advice)
    for of_list in lists:
        move = Command("clean-queues", *of_list, "--requeue-to", queue)
        evidence.append(f"{move} moves the messages to a list that workers poll")
    return Finding("queue.unpolled", queue, summary, tuple(evidence))


def _contents(strays: Collection[Stray]) -> list[str]:
    """The tasks in lists, the most frequent first, and who sent them."""
    tasks = Counter[str]()
    origins = dict[str, None]()
    for stray in strays:
        tasks.update(stray.tasks)
        origins |= dict.fromkeys(stray.origins)
    read = sum(stray.looked_at for stray in strays)
    lines = [f"{count:,} × {task}, of {read:,} read" for task, count in tasks.most_common()]
    if origins:
        lines.append(f"sent by {', '.join([*origins][:_MOST_ORIGINS])}")
    return lines


def _unknown(fleet: Fleet, snapshot: Snapshot, key: str, length: int, stray: Stray) -> Finding:
    """Report Celery messages in a list that is not a queue of the inventory, and their senders."""
    assert snapshot.broker is not None
    waiting = counted(length, "Celery message waits", "Celery messages wait")
    consumers = sorted(node.name for node in _consumers(snapshot.broker, stray.queue))
    senders = list(dict.fromkeys(_senders(snapshot, stray.queue)))
    which = fleet.worded("is not a queue of the inventory", "no worker was seen to consume")
    add = ": add it to the inventory"
    if consumers and stray.queue in fleet.consumed:
        which = f"is polled as priority {stray.priority} of {stray.queue}"
        which += fleet.worded(", but not in celery_broker_options", ", but not read here")
        add = ": set its priority_steps in celery_broker_options"
    summary = f"{waiting} in {key!r}, which {which}"
    if consumers:
        advice = f"{', '.join(consumers)} consumes it"
        advice += fleet.worded(add, "")
    else:
        near = _near(fleet, snapshot.broker, stray.queue)
        summary += _did_you_mean(near)
        where = "correct the queue there" if senders else _UNSENT
        advice = f"{where}; {_clean(stray.queue, near)}"
    return Finding(
        "queue.unknown",
        key,
        summary,
        (*_contents([stray]), *senders, advice),
        severity=Severity.WARNING,
    )


def _clean(queue: str, near: str) -> str:
    """Return the command for the messages of an unknown queue."""
    if near:
        move = Command("clean-queues", "--queue", queue, "--requeue-to", near)
        return f"{move} moves its messages into {near}"
    return f"{Command('clean-queues', '--queue', queue)} archives its messages"


def _near(fleet: Fleet, broker: BrokerState, queue: str) -> str:
    """The consumed or expected queue with the most similar name; "" if none is similar."""
    named = () if fleet.found else fleet.consumed
    known = {*named}.union(*(node.queues for node in broker.nodes.values())) - {queue}
    return next(iter(difflib.get_close_matches(queue, known, n=1, cutoff=_CLOSE)), "")


def _polled(fleet: Fleet, consumers: Iterable[NodeState]) -> set[int]:
    """The priorities whose lists any of these nodes polls: as it reports, or by the inventory."""
    usual = fleet.app.broker_options.priority_steps
    polled = {*usual}
    for node in consumers:
        polled |= {*(node.options or {}).get("priority_steps", usual)}
    return polled


def _senders(snapshot: Snapshot, queue: str) -> Iterator[str]:
    """The entries and routes of the application that lead to a queue."""
    for host, state in sorted(snapshot.reachable().items()):
        loaded = state.application or Application()
        kept = [one.entry for one in state.kept.entries if one.enabled] if state.kept else []
        for entry in (*loaded.schedule, *kept):
            if entry.route and entry.route.queue == queue:
                yield f"the schedule's {entry.name} sends {entry.task} there"
        for task in loaded.tasks:
            if task.route.queue == queue and queue != loaded.default_queue:
                yield f"the application, loaded on {host}, routes {task.name} there"
