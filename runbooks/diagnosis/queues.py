"""Faults of the queues: nobody consumes them, messages that should not wait there, thresholds
crossed.
"""

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
    Severity,
    Snapshot,
    Stray,
)
from runbooks.core.wording import counted, enumerated, span, them, utc
from runbooks.diagnosis.services import changes_of
from runbooks.diagnosis.silence import busy_solo, settling
from runbooks.diagnosis.taking import doubtful, take, take_unacked, takes_malformed

_WAIT = ("message waits", "messages wait")
_NO_MESSAGE = ("item is no Celery message", "items are no Celery messages")
_ARE = ("message is", "messages are")


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding] = ()) -> Iterator[Finding]:
    """Every queue of the inventory in turn, then the lists that look like queues and are not in it.

    What starts the workers of one that nobody consumes are changes of the findings that are `known`
    already.
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
    """What a rule means, what would kill a worker, and what a killed run has set aside: one change
    mends all of it.
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
    needs_none = expected is not None and expected.consumers == 0
    if needs_none or any(state.name in node.queues for node in broker.nodes.values()):
        return
    workers = ((host, worker) for host in fleet.hosts for worker in host.settings.workers)
    consuming = [(host, worker) for host, worker in workers if state.name in worker.queues]
    wanted = [host.node(worker) for host, worker in consuming]
    fix = changes_of(known, {(host.name, worker.known_as) for host, worker in consuming})
    if any(node in busy for node in wanted):
        return
    elsewhere = [
        worker.name for worker in fleet.all_workers if state.name in worker.queues and not wanted
    ]
    who = ", ".join(wanted or elsewhere) or "no worker"
    outside = " on a host that is not looked at" if elsewhere else ""
    count = expected.consumers if expected else 0
    if count and not (wanted or elsewhere):
        who = counted(count, "worker")
    near = "" if count or consuming or elsewhere else _near(fleet, broker, state.name)
    lengths = ", ".join(f"LLEN {key!r} = {depth:,}" for key, depth in state.depths.items())
    waiting = (
        f"{counted(state.depth, *_WAIT)} in {state.name}"
        if state.depth
        else f"{state.name} is empty"
    )
    yield Finding(
        "queue.no_consumer",
        state.name,
        f"{waiting} and no node consumes it"
        + (f"; did you mean '{near}'?" if near and state.depth else ""),
        (
            *([lengths] if lengths else []),
            f"{counted(len(broker.nodes), 'node answers', 'nodes answer')} "
            "and none lists it in active_queues"
            + "".join(
                f"; {name}: {', '.join(sorted(node.queues))}"
                for name, node in sorted(broker.nodes.items())
            ),
            *([] if fleet.found else [f"by the inventory {who}{outside} should"]),
        ),
        remedy="start its workers" if fix else None,
        fix=fix,
        severity=Severity.ERROR if count else _severity(state, wanted, elsewhere),
    )


def _few_consumers(
    fleet: Fleet, broker: BrokerState, state: QueueState, busy: Collection[str]
) -> Iterator[Finding]:
    """Some, and not as many as `celery_queues` wants; a busy solo worker does not answer, and
    consumes.
    """
    expected = fleet.app.queues.get(state.name)
    nodes = sorted(
        (node for node in broker.nodes.values() if state.name in node.queues),
        key=lambda node: node.name,
    )
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
            f" inventory wants {expected.consumers:,}",
            (f"inspect active_queues: {names}", "celery_queues of the inventory says how many"),
        )


def _severity(state: QueueState, wanted: Sequence[str], elsewhere: Sequence[str]) -> Severity:
    """A queue whose workers are on hosts outside of --limit is a fault, but none of those that were
    asked about.
    """
    if elsewhere and not wanted:
        return Severity.WARNING
    return Severity.ERROR if state.depth or wanted else Severity.INFO


def _sampled(state: QueueState) -> Iterator[Finding]:
    if state.unseen:
        yield Finding(
            "queue.sampled",
            state.name,
            f"{state.depth - state.unseen:,} of {counted(state.depth, 'message')} in"
            f" {state.name} were looked at before the time was over: what is said of its messages"
            " is true of a sample",
            (
                "looked at: the newest, some of the middle, and the oldest of each list",
                "--budget gives more time; a plan reads all",
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
            f"{counted(state.aside, *_ARE)} set aside from {state.name} by a run that is going on,"
            " or was killed",
            tuple(f"LLEN {key!r} = {depth:,}" for key, depth in state.depths.items()),
            remedy="bring them home (clean-queues does, or an undo of that run)",
            fix=fix,
            severity=Severity.WARNING,
        )


def _selected(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    of = counted(state.depth, "message")
    for selection in state.selected:
        tasks = ", ".join(f"{count:,} × {task}" for task, count in selection.by_task.items())
        to = readable(selection.to) if selection.to else ""
        yield Finding(
            "queue.selected",
            state.name,
            f"{_at_least(state)}{counted(selection.count, f'of {of} is', f'of {of} are')} to be "
            f"{f'moved into {to}' if to else 'taken out'}: {selection.reason}",
            (
                tasks,
                *(f"e.g. {sample.id} (retries {sample.retries})" for sample in selection.samples),
            ),
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
            f"{counted(selection.count, 'message')} of {state.name}, fetched and held by no node"
            f" that answers: to be {f'moved into {to}' if to else 'taken out'}: {selection.reason}",
            tuple(f"{count:,} × {task}" for task, count in selection.by_task.items()),
            remedy=(
                (f"move them into {to}" if to else "take them out into the archive")
                if change
                else None
            ),
            fix=(change,) if change else (),
            severity=Severity.WARNING,
        )


def _malformed(state: QueueState, fix: tuple[Change, ...]) -> Iterator[Finding]:
    if state.malformed.count:
        yield Finding(
            "queue.malformed",
            state.name,
            f"{_at_least(state)}{counted(state.malformed.count, *_NO_MESSAGE)}; each kills the"
            " worker that pops it",
            state.malformed.raw_samples,
            remedy="take them out into the archive, byte for byte" if fix else None,
            fix=fix,
        )


def _too_large(fleet: Fleet, state: QueueState) -> Iterator[Finding]:
    if count := sum(state.too_large.values()):
        yield Finding(
            "queue.too_large",
            state.name,
            f"{counted(count, 'compressed message unpacks', 'compressed messages unpack')} to more"
            f" than {fleet.app.unpack_limit} MiB: left alone, unread; a worker that takes one"
            " unpacks all of it",
            tuple(
                f"{n:,} × {task or 'a task that was not read'}"
                for task, n in state.too_large.items()
            ),
            severity=Severity.WARNING,
        )


def _thresholds(fleet: Fleet, snapshot: Snapshot, state: QueueState) -> Iterator[Finding]:
    limits = fleet.app.thresholds.of(state.name)
    if state.depth > limits.depth:
        yield Finding(
            "queue.depth",
            state.name,
            f"{counted(state.depth, *_WAIT)}, more than {limits.depth:,}",
            tuple(f"{count.count:,} × {task}" for task, count in state.by_task.items()),
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
        late_s = snapshot.at - count.oldest_eta_at if count.oldest_eta_at is not None else 0.0
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
    broker, limit_s = snapshot.broker, fleet.app.thresholds.unacked_age
    if (
        broker
        and broker.oldest_unacked_at is not None
        and snapshot.at - broker.oldest_unacked_at > limit_s
    ):
        age_s = snapshot.at - broker.oldest_unacked_at
        yield Finding(
            "queue.unacked_age",
            "unacked",
            f"a message was fetched {span(age_s)} ago and not acknowledged since, more than"
            f" {span(limit_s)}",
            (
                f"{counted(broker.unacked, *_ARE)} fetched and not acknowledged",
                (
                    "it waits for its ETA, its task runs that long, or its worker was killed; after"
                    " the visibility timeout Celery delivers it again"
                ),
            ),
            severity=Severity.WARNING,
        )


def _orphaned(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What a worker held when it was killed; nothing is said while one that may hold it does not
    answer.
    """
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
        yield Finding(
            "queue.orphaned",
            queue,
            f"{counted(count, f'message of {queue} was', f'messages of {queue} were')} fetched by a"
            f" worker that is gone; Celery delivers {them(count)} again {span(timeout_s)} after"
            f" that; to give {them(count)} back now: {back}",
            (
                f"{counted(broker.unacked, *_ARE)} fetched and not acknowledged",
                (
                    "none of the nodes that answer lists these as active, reserved or scheduled;"
                    " Celery delivers them again after the visibility timeout"
                    " (celery_broker_options)"
                ),
            ),
            severity=Severity.WARNING,
        )


def _selected_of_unacked(broker: BrokerState, queue: str) -> int:
    state = broker.queues.get(queue)
    return sum(selection.count for selection in state.unacked) if state else 0


def _held_by_none(broker: BrokerState, queue: str, count: int) -> Finding:
    """Without an inventory it is not known which nodes there are: one that does not answer may hold
    them.
    """
    were = f"message of {queue} was", f"messages of {queue} were"
    return Finding(
        "queue.orphaned",
        queue,
        f"{counted(count, *were)} fetched, and no node that answers holds {them(count)}",
        (
            f"{counted(broker.unacked, *_ARE)} fetched and not acknowledged",
            (
                "their worker was killed, or runs a task in a pool that answers nothing meanwhile"
                " (solo)"
            ),
        ),
        severity=Severity.WARNING,
    )


def _hoarded(broker: BrokerState, now: float) -> Iterator[Finding]:
    """What a worker fetched ahead of need while its processes run long tasks, and another of its
    queue does nothing.

    **Source:** celery 5.7.0 `worker/consumer/consumer.py: initial_prefetch_count`:
    worker_prefetch_multiplier × its processes; without acks_late what it has begun counts no more.
    """
    for hoard in broker.hoards:
        queue, waited_s = hoard.queue, now - hoard.since_at
        idle = sorted(
            n.name for n in broker.nodes.values() if queue in n.queues and n.holds == frozenset()
        )
        if idle and waited_s > _HOARDED_S:
            yield Finding(
                "queue.hoarded",
                queue,
                f"{counted(hoard.count, f'message of {queue} waits', f'messages of {queue} wait')} in {hoard.node} for "
                f"up to {span(waited_s)}, behind what it "
                "runs, while others are idle: set worker_prefetch_multiplier = 1, and task_acks_late = True for tasks "
                "that may run twice, or start workers with --disable-prefetch (Celery 5.6); then restart them",
                (f"inspect active, reserved, scheduled: nothing on {', '.join(idle)}",
                 f"inspect reserved: {hoard.count:,} of {queue} on {hoard.node}"),
                severity=Severity.WARNING,
            )  # fmt: skip


_HOARDED_S = 60.0
"""Shorter tasks than this are fetched ahead with good reason."""


def _naive_etas(broker: BrokerState) -> Iterator[Finding]:
    for task, naive in broker.naive_etas.items():
        yield Finding(
            "message.naive_eta",
            task,
            f"{counted(naive.count, f'message of {task} waits', f'messages of {task} wait')} for an"
            f" ETA without a time zone, up to {utc(naive.at)}: workers take it for UTC, so where"
            " whoever sent it meant local time they run it hours too late",
            (
                f"header eta: {naive.eta}",
                *([f"sent by {', '.join(naive.origins[:_ORIGINS])}"] if naive.origins else []),
                "datetime.now() has no zone: send datetime.now(UTC) + …, or a countdown",
                (
                    f"what waits keeps its time: {Command('revoke', 'ID')} lets the worker discard"
                    " it, to be sent again"
                ),
            ),
            severity=Severity.WARNING,
        )


def _redelivered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A worker holds a message from its fetch to its ETA, and what is held for too long is given
    back meanwhile.
    """
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
                    (
                        "countdown, ETA and retry delays have to be shorter than the visibility"
                        " timeout: raise visibility_timeout in the application's"
                        " broker_transport_options, and in celery_broker_options"
                    ),
                ),
                severity=Severity.WARNING,
            )


def _expired(state: QueueState) -> Iterator[Finding]:
    """**Source:** celery 5.7.0 `worker/request.py: Request.maybe_expire`: such a task is revoked
    when it is taken.
    """
    expired = {task: count.expired for task, count in state.by_task.items() if count.expired}
    read, late = sum(count.count for count in state.by_task.values()), sum(expired.values())
    if late >= _FEW_EXPIRED and 2 * late >= read:
        yield Finding(
            "queue.expired",
            state.name,
            f"{late:,} of {counted(read, 'message')} in {state.name} have expired: the worker that"
            " takes them discards them without running them",
            (
                *(f"{count:,} × {task}" for task, count in sorted(expired.items())),
                (
                    "they waited for longer than whoever sent them allowed (expires): add workers,"
                    " or allow for more"
                ),
                f"to see them: {Command('messages', '--queue', state.name)}",
            ),
            severity=Severity.WARNING,
        )


_FEW_EXPIRED = 10


def _given_back_early(fleet: Fleet, broker: BrokerState) -> Iterator[Finding]:
    """**Source:** kombu 5.7.0 `transport/redis.py: QoS.restore_visible`: the unacknowledged
    messages of a db are in one index, and each worker gives back what is older than its own
    visibility timeout, whoever has fetched it.
    """
    ours_s, own = (
        fleet.app.broker_options.visibility_timeout,
        {
            *fleet.all_nodes,
            *fleet.nodes_by_pattern(broker.nodes),
        },
    )
    for name, node in sorted(broker.nodes.items()):
        its_s = (node.options or {}).get("visibility_timeout", _DEFAULT_VISIBILITY_S)
        if (
            name in own
            or node.options is None
            or node.queues & frozenset(fleet.consumed)
            or its_s >= ours_s
        ):
            continue
        yield Finding(
            "worker.gives_back_early",
            name,
            f"{name} is not a worker of the inventory and works in this db with a visibility"
            f" timeout of {span(its_s)}: after that it gives back what the inventory's workers,"
            f" which allow {span(ours_s)}, still run",
            (
                f"inspect conf: visibility_timeout {its_s:g} s",
                f"inspect active_queues: {', '.join(sorted(node.queues))}",
                "give each application a db of its own, or both the same visibility_timeout",
            ),
        )


_DEFAULT_VISIBILITY_S = 3600.0
"""**Source:** kombu 5.7.0 `transport/redis.py: Channel.visibility_timeout`."""


def _unbound(broker: BrokerState) -> Iterator[Finding]:
    """**Source:** celery 5.7.0 `app/amqp.py: AMQP._create_task_sender`: what is sent to a queue of
    a direct exchange by the queue's name goes there without the exchange's table.
    """
    for one in broker.unbound:
        nodes = ", ".join(
            sorted(node.name for node in broker.nodes.values() if one in node.bindings)
        )
        yield Finding(
            "queue.unbound",
            one.queue,
            f"{one.queue} is not bound to exchange {one.exchange} any more: what is sent to that"
            f" exchange with the routing key {one.routing_key!r} is dropped",
            (
                (
                    f"inspect active_queues: {nodes} consumes it from exchange"
                    f" {one.exchange} ({one.kind})"
                ),
                f"SMEMBERS _kombu.binding.{one.exchange} does not have it",
                *(
                    ["what is sent to the queue by its name arrives all the same"]
                    if one.kind == "direct"
                    else []
                ),
                f"a worker binds its queues when it starts: {Command('restart-workers')}",
            ),
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
                f"the list {key!r} ({counted(length, 'item')}) is not Celery's; it is never"
                " touched",
                severity=Severity.INFO,
            )
            continue
        stray = snapshot.broker.strays.get(key) or Stray(key, 0, 0, {}, {})
        if _is_unpolled(fleet, snapshot.broker, stray):
            of_queues.setdefault((stray.queue, stray.sep), {})[key] = stray
        else:
            yield _of_nobody(fleet, snapshot, key, length, stray)
    for (queue, sep), strays in of_queues.items():
        yield _unpolled(fleet, snapshot, queue, sep, strays)


def _is_unpolled(fleet: Fleet, broker: BrokerState, stray: Stray) -> bool:
    """Whether it is a list of a queue that somebody consumes, or should, and that no worker of it
    polls.
    """
    consumers = [node for node in broker.nodes.values() if stray.queue in node.queues]
    known = consumers or stray.queue in fleet.consumed
    return bool(known and (stray.sep or stray.priority not in _polled(fleet, consumers)))


def _unpolled(
    fleet: Fleet, snapshot: Snapshot, queue: str, sep: str, strays: Mapping[str, Stray]
) -> Finding:
    """The lists of one queue's priorities that no worker polls, by their keys."""
    assert snapshot.broker is not None
    consumers = [node for node in snapshot.broker.nodes.values() if queue in node.queues]
    keys = sorted(strays, key=lambda key: strays[key].priority)
    waiting = counted(sum(snapshot.broker.other_lists[key][0] for key in keys), *_WAIT)
    priorities = enumerated([str(strays[key].priority) for key in keys])
    usual = (
        " that has Celery's own priority_steps" if fleet.found and not consumers and not sep else ""
    )
    tasks, origins = Counter[str](), dict[str, None]()
    for stray in strays.values():
        tasks.update(stray.tasks)
        origins |= dict.fromkeys(stray.origins)
    steps = ", ".join(map(str, sorted(_polled(fleet, consumers))))
    if sep:
        what = (
            f"{waiting} in {enumerated(keys)}, which is {queue} with another separator, so no"
            " worker polls it"
        )
        ours, whose = (
            fleet.app.broker_options.sep,
            fleet.worded("the inventory has", "assumed here is"),
        )
        advice = (
            f"whoever sends these has the sep {sep!r} in broker_transport_options, and"
            f" {whose} {ours!r}: give both sides the same"
        )
        lists: list[tuple[str, ...]] = [("--queue", key) for key in keys]
    else:
        what = f"{waiting} as priority {priorities} of {queue}, which no worker{usual} polls"
        advice = (
            f"workers poll the priorities {steps}: give whoever sends these the same priority_steps"
            " in broker_transport_options"
        )
        lists = [("--queue", queue, "--priority", str(strays[key].priority)) for key in keys]
    return Finding(
        "queue.unpolled",
        queue,
        what,
        (
            *(f"{count:,} × {task}, of {sum(one.looked_at for one in strays.values()):,} looked at"
              for task, count in tasks.most_common()),
            *([f"sent by {', '.join([*origins][:_ORIGINS])}"] if origins else []),
            *dict.fromkeys(_senders(snapshot, queue)),
            advice,
            *(f"{Command('clean-queues', *of_list, '--requeue-to', queue)} moves what waits to where workers poll"
              for of_list in lists),
        ),
    )  # fmt: skip


def _of_nobody(fleet: Fleet, snapshot: Snapshot, key: str, length: int, stray: Stray) -> Finding:
    """Celery messages in a list that is no queue of the inventory: what they are, and who sends
    them.
    """
    assert snapshot.broker is not None
    waiting = counted(length, "Celery message waits", "Celery messages wait")
    consumers = [name for name, node in snapshot.broker.nodes.items() if stray.queue in node.queues]
    senders = list(dict.fromkeys(_senders(snapshot, stray.queue)))
    no_queue = fleet.worded("is no queue of the inventory", "no worker was seen to consume")
    what = f"{waiting} in {key!r}, which {no_queue}"
    if consumers:
        advice = (
            f"{', '.join(sorted(consumers))} consumes"
            f" it{fleet.worded(': name it in the inventory', '')}"
        )
    else:
        near = _near(fleet, snapshot.broker, stray.queue)
        what += f"; did you mean '{near}'?" if near else ""
        then = Command(
            "clean-queues", "--queue", stray.queue, *(("--requeue-to", near) if near else ())
        )
        does = f"moves what waits into {near}" if near else "takes what waits out into the archive"
        advice = f"{'correct the queue there' if senders else _UNSENT}; {then} {does}"
    return Finding(
        "queue.unknown",
        key,
        what,
        (
            *(
                f"{count:,} × {task}, of {stray.looked_at:,} looked at"
                for task, count in stray.tasks.items()
            ),
            *([f"sent by {', '.join([*stray.origins][:_ORIGINS])}"] if stray.origins else []),
            *senders,
            advice,
        ),
        severity=Severity.WARNING,
    )


def _near(fleet: Fleet, broker: BrokerState, queue: str) -> str:
    """The queue of nearly this name that a node consumes, or that the inventory has; "" where there
    is none.
    """
    named = () if fleet.found else fleet.consumed
    known = {*named}.union(*(node.queues for node in broker.nodes.values())) - {queue}
    return next(iter(difflib.get_close_matches(queue, known, n=1, cutoff=_CLOSE)), "")


_CLOSE, _ORIGINS = 0.75, 5
_UNSENT = (
    "neither the schedule nor a route leads there: a call that names it, or another application in"
    " this db"
)


def _polled(fleet: Fleet, consumers: Iterable[NodeState]) -> set[int]:
    """The priorities whose lists any of these polls: as it says, or by the inventory."""
    usual = fleet.app.broker_options.priority_steps
    return {*usual}.union(
        *((node.options or {}).get("priority_steps", usual) for node in consumers)
    )


def _senders(snapshot: Snapshot, queue: str) -> Iterator[str]:
    """What of the application leads to a queue."""
    for host, state in sorted(snapshot.reachable().items()):
        said = state.application or Application()
        kept = [one.entry for one in state.kept.entries if one.enabled] if state.kept else []
        for entry in (*said.schedule, *kept):
            if entry.route and entry.route.queue == queue:
                yield f"the schedule's {entry.name} sends {entry.task} there"
        for task in said.tasks:
            if task.route.queue == queue and queue != said.default_queue:
                yield f"the application, loaded on {host}, routes {task.name} there"
