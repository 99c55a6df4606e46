"""Faults of the application's code and environment: tasks that are not registered, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from runbooks.core.application import Application
from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    Block,
    Finding,
    Form,
    HostState,
    ImportProbe,
    QueueState,
    Severity,
    Snapshot,
)
from runbooks.core.redaction import redact
from runbooks.core.settings import Worker
from runbooks.core.wording import counted, tasks, them
from runbooks.diagnosis import imports
from runbooks.diagnosis.environment import drift, reading_of
from runbooks.diagnosis.expected import expected_by
from runbooks.diagnosis.services import changes_of, control


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """A failing import with its traceback, whether the inventory's environment mends it, and the
    nodes it hit.

    What mends it are changes of the findings that are `known` already.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state and state.not_loaded:
            yield Finding(
                "host.not_loaded",
                host.name,
                f"the application was not loaded on {host.name}, so what it registers is not known:"
                f" {state.not_loaded}",
                severity=Severity.INFO,
            )
        if state and state.imports_now and state.imports_now.failed:
            yield _probe_failed(
                fleet, host, state, state.imports_now.failed, environment_of(host, known)
            )
        elif state and state.imports_now:
            yield from _imports(fleet, host, state, state.imports_now, environment_of(host, known))
            yield from _mute(host, snapshot, state.imports_now)
    yield from would_discard(fleet, snapshot, repaired=True)
    yield from discarding(fleet, snapshot)
    yield from _discarded_unread(fleet, snapshot)


def discarding(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Tasks beyond the expected ones that are sent, or may be, to running workers that throw them
    away.
    """
    yield from _discarded(fleet, snapshot)
    yield from _scheduled_for_nobody(fleet, snapshot)


def would_discard(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """A finding for each worker that must not be started; `repaired` as in `discards`."""
    for host, worker, queue, task, count in discards(fleet, snapshot, repaired=repaired):
        node = host.node(worker)
        also = (
            ", also with the inventory's values"
            if repaired and _tried(snapshot.reachable()[host.name])
            else ""
        )
        yield Finding(
            "task.would_be_discarded",
            node,
            f"{counted(count, f'message of {task} waits', f'messages of {task} wait')} in {queue},"
            f" and {node} would discard {them(count)} as soon as it runs",
            (f"imported on the host, the application does not register {task}{also}",),
            blocks=(Block(host.name, worker.known_as),),
        )
    yield from _unreadable(fleet, snapshot, repaired=repaired)


def _unreadable(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """Messages written in a way that the application does not accept, at a queue that its worker is
    to consume.
    """
    for host, worker, queue, probe in _queues_of_workers(
        fleet, snapshot, consumed=False, repaired=repaired
    ):
        node, blocks, left = (
            host.node(worker),
            (Block(host.name, worker.known_as),),
            _left(queue, repaired=repaired),
        )
        for what, count in _refused(probe, left).items():
            yield Finding(
                "message.would_be_discarded",
                node,
                f"{_are(count, queue)} {what}, and {node} would discard {them(count)} as soon as it"
                f" runs: let the application accept {them(count)}, or take {them(count)} out first",
                tuple(_what_it_accepts(probe)),
                blocks=blocks,
            )
        if not repaired and queue.malformed.count:
            yield Finding(
                "message.would_kill",
                node,
                f"{counted(queue.malformed.count, 'malformed item')} in {queue.name}, each of which"
                f" would kill {node} and be lost: take {them(queue.malformed.count)} out first,"
                f" with {Command('clean-queues')}",
                queue.malformed.raw_samples,
                blocks=blocks,
            )
        yield from _unjudged(node, queue, probe, left, blocks)


def _discarded_unread(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Messages that a running worker takes, and that its application does not accept; or of which
    nobody can tell.
    """
    for host, worker, queue, probe in _queues_of_workers(
        fleet, snapshot, consumed=True, repaired=False
    ):
        node, left = host.node(worker), _left(queue, repaired=True)
        for what, count in _refused(probe, left).items():
            yield Finding(
                "message.discarded",
                node,
                f"{_are(count, queue)} {what}, and {node}, which consumes it, discards"
                f" {them(count)} on receipt: take {them(count)} out, or let the application accept"
                f" {them(count)} and restart it",
                (*_what_it_accepts(probe), *((_LOADED_NOW,) if probe.loaded else ())),
            )
        yield from _unjudged(node, queue, probe, left)


_LOADED_NOW = (
    "it was loaded now: what a worker does that was started with other settings is not known"
)


def _unjudged(
    node: str,
    queue: QueueState,
    probe: ImportProbe,
    left: Mapping[Form, int],
    blocks: tuple[Block, ...] = (),
) -> Iterator[Finding]:
    unknown = {
        form: count
        for form, count in left.items()
        if form != Form()
        and (probe.accepts is None or (form.compression and probe.compressions is None))
    }
    if unknown:
        yield Finding(
            "message.unjudged",
            node,
            f"whether {node} accepts {counted(sum(unknown.values()), 'message')} in {queue.name} is"
            " not known, for its application does not say",
            tuple(
                f"{count:,} ×"
                f" {form.content_type}{f' compressed with {form.compression}' * bool(form.compression)}"
                for form, count in unknown.items()
            ),
            severity=Severity.WARNING,
            blocks=blocks,
        )


def _queues_of_workers(
    fleet: Fleet, snapshot: Snapshot, *, consumed: bool, repaired: bool
) -> Iterator[tuple[FleetHost, Worker, QueueState, ImportProbe]]:
    """The queues that workers consume, or else those that they should and do not, where the
    application was tried.

    With what it said: with the inventory's environment where that is `repaired`.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        probe = (state.imports_wanted if repaired else state.imports_now) if state else None
        for worker in host.settings.workers if probe else ():
            node = snapshot.broker.nodes.get(host.node(worker))
            own = node.queues if node else frozenset[str]()
            queues = own if consumed else set(worker.queues) - own
            for queue in sorted(queues & snapshot.broker.queues.keys()):
                assert probe is not None
                yield host, worker, snapshot.broker.queues[queue], probe


def _left(queue: QueueState, *, repaired: bool) -> dict[Form, int]:
    """How many messages wait by how they are written, without those that rules take out where that
    is `repaired`.
    """
    left = _forms(
        queue.forms, sum(task.count for task in queue.by_task.values()) + queue.unreadable
    )
    for selection in queue.selected if repaired else ():
        left.subtract(_forms(selection.by_form, selection.count))
    return {form: count for form, count in left.items() if count > 0}


def _forms(unusual: Mapping[Form, int], count: int) -> Counter[Form]:
    """So many messages by how they are written: those that are not told are as Celery writes them
    by default.
    """
    return Counter({Form(): count - sum(unusual.values()), **unusual})


def _are(count: int, queue: QueueState) -> str:
    return counted(count, f"message in {queue.name} is", f"messages in {queue.name} are")


def _refused(probe: ImportProbe, left: Mapping[Form, int]) -> dict[str, int]:
    """How many of these the application does not accept, by what is said of them.

    **Source:** kombu 5.7.0 `message.py: Message.__init__`, `serialization.py:
    SerializerRegistry.loads`; celery 5.7.0 `worker/consumer/consumer.py: on_decode_error,
    on_invalid_task, on_unknown_message`: all three acknowledge it.
    """
    refused = Counter[str]()
    for form, count in left.items():
        if why := _why_refused(probe, form):
            refused[why] += count
    return refused


def _why_refused(probe: ImportProbe, form: Form) -> str:
    kind = form.content_type
    if (
        form.compression
        and probe.compressions is not None
        and form.compression not in probe.compressions
    ):
        return f"compressed with {form.compression}, which its Python cannot undo"
    if probe.accepts is not None and kind not in probe.accepts:
        return f"{kind}, which it does not accept"
    if probe.decodes is not None and kind not in probe.decodes:
        return f"{kind}, for which it has no decoder"
    if kind in _TEXTS and probe.encodings is not None and form.encoding not in probe.encodings:
        return f"encoded as {form.encoding}, which its Python does not know"
    return "" if form.protocol else "without a task"


_TEXTS = ("application/data", "application/text")
"""What has no decoder of its own. **Source:** kombu 5.7.0 `serialization.py: TRUSTED_CONTENT`."""


def _what_it_accepts(probe: ImportProbe) -> Iterator[str]:
    if probe.accepts is not None:
        yield f"imported on the host, the application accepts {', '.join(sorted(probe.accepts))}"


def _probe_failed(
    fleet: Fleet, host: FleetHost, state: HostState, said: str, fix: tuple[Change, ...]
) -> Finding:
    why, *besides = said.splitlines()
    wanted = state.imports_wanted
    mended = (
        wanted is not None
        and wanted.loaded
        and wanted.registered >= frozenset(fleet.app.expected_tasks)
    )
    tried = (
        "tried on the host: with the inventory's values it is loaded, and registers the expected"
        " tasks"
    )
    return Finding(
        "host.probe_failed",
        host.name,
        f"the application on {host.name} could not be asked what it registers: {why}",
        (
            *besides[-8:],
            *_not_known(host, state),
            *((*_differences(host, state), tried) if mended else ()),
        ),
        remedy=SET_VALUES if mended else None,
        fix=fix if mended else (),
        blocks=() if mended else (Block(host.name),),
    )


SET_VALUES = "set the inventory's values in the environment file, then restart"


def _tried(state: HostState) -> bool:
    """Whether the application was loaded with the inventory's values too, as they differ from those
    that it has.
    """
    return state.imports_wanted is not None and state.imports_wanted is not state.imports_now


def unregistered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A finding for each node that lacks expected tasks: one of several nodes may be mended before
    the others.
    """
    for name, missing in _lacking(fleet, snapshot).items():
        yield _not_registered(fleet, {name: missing}, ())


def _lacking(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[str]]:
    """The expected tasks that nodes of the fleet do not know."""
    assert snapshot.broker is not None
    nodes, expected = snapshot.broker.nodes, expected_by(fleet, snapshot)
    lacking = {
        name: own - nodes[name].registered for name, own in expected.items() if name in nodes
    }
    return {name: missing for name, missing in lacking.items() if missing}


def not_registered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """One finding of all nodes that lack expected tasks, with a restart of each where that may
    help.
    """
    if lacking := _lacking(fleet, snapshot):
        states = snapshot.reachable()
        restarts = tuple(
            control(
                host,
                worker.known_as,
                "restart",
                f"lacks {tasks(lacking[host.node(worker)])}",
                snapshot,
            )
            for host in fleet.hosts
            for worker in host.settings.workers
            if host.node(worker) in lacking and host.name in states
            if (service := states[host.name].services.get(worker.known_as))
            and service.pid is not None
            if _would_know(states[host.name], lacking[host.node(worker)])
        )
        yield _not_registered(fleet, lacking, restarts, loaded=_all_know(fleet, snapshot, lacking))


def _all_know(fleet: Fleet, snapshot: Snapshot, lacking: Mapping[str, frozenset[str]]) -> bool:
    """Whether the application, as it was loaded on the host of each of these nodes, has all that
    the node lacks.
    """
    its = {host.node(worker): host.name for host in fleet.hosts for worker in host.settings.workers}
    said = {name: state.application for name, state in snapshot.reachable().items()}
    return all(
        (own := said.get(its.get(node, ""))) is not None and all(own.task(name) for name in missing)
        for node, missing in lacking.items()
    )


def _would_know(state: HostState, missing: frozenset[str]) -> bool:
    """Whether a worker that is started now may know some of these tasks: the application there was
    not loaded, or does.

    With the inventory's environment where that was tried.
    """
    said = state.imports_wanted.application if state.imports_wanted else state.application
    return said is None or any(said.task(name) for name in missing)


def environment_of(host: FleetHost, known: Sequence[Finding]) -> tuple[Change, ...]:
    """The changes that put a host's environment right, and start or restart what loads it."""
    services = {(host.name, service) for service in host.services}
    set_ = (
        change
        for finding in known
        if finding.code == "environment.differs"
        for change in finding.fix
    )
    return (*(change for change in set_ if change.host == host.name), *changes_of(known, services))


def _not_registered(
    fleet: Fleet,
    lacking: Mapping[str, frozenset[str]],
    restarts: tuple[Change, ...],
    *,
    loaded: bool = False,
) -> Finding:
    """`loaded`: the application has them now, so a restart brings them."""
    remedy = "restart the workers" if loaded else "restart the workers once the import works"
    unknown = frozenset[str]().union(*lacking.values())
    routed = (
        "by the application's routes, as it was loaded, these go to queues that the worker consumes"
    )
    return Finding(
        "task.not_registered",
        ", ".join(sorted(lacking)),
        f"running workers do not know {tasks(unknown)}: such a message is discarded as soon as it"
        " is taken",
        (
            *(
                f"inspect registered: {name} lacks {', '.join(sorted(lacking[name]))}"
                for name in sorted(lacking)
            ),
            *([] if fleet.app.expected_tasks else [routed]),
        ),
        remedy=remedy if restarts else None,
        fix=restarts,
    )


def _discarded(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Tasks that running nodes throw away though others know them, or though they wait; beside the
    expected ones.

    A node is compared with those that consume nothing but its own queues: what is sent to them may
    come to it. Where the application was loaded, also with what its router sends to the node's
    queues. Celery's own tasks are not in the answers, and are not compared. **Source:** celery
    5.7.0 `worker/control.py: registered`; `worker/consumer/consumer.py: on_unknown_task`.
    """
    assert snapshot.broker is not None
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    own |= fleet.nodes_by_pattern(snapshot.broker.nodes).keys()
    nodes = {
        name: node
        for name, node in sorted(snapshot.broker.nodes.items())
        if name in own and node.queues
    }
    expected = expected_by(fleet, snapshot)
    for name, node in nodes.items():
        known = node.registered | expected[name]
        waiting = {
            (task, queue): count.count
            for queue in sorted(node.queues & snapshot.broker.queues.keys())
            for task, count in snapshot.broker.queues[queue].by_task.items()
            if task not in known and not task.startswith("celery.")
        }
        peers = [
            peer
            for peer in nodes.values()
            if peer is not node and peer.queues and peer.queues <= node.queues
        ]
        differing = {
            peer.name: peer.registered - known for peer in peers if peer.registered - known
        }
        sent = [way for way in _ways(snapshot) if way[1] in node.queues and way[0] not in known]
        unknown = frozenset(task for task, *_ in (*waiting, *sent)).union(*differing.values())
        if unknown:
            yield Finding(
                "task.discarded",
                name,
                f"{name} discards {tasks(unknown)} as soon as it takes them, for it does not know "
                f"{'it' if len(unknown) == 1 else 'them'}: give it the code that has "
                f"{'it' if len(unknown) == 1 else 'them'} and restart it, or let it consume other queues",
                (
                    *(f"{count:,} × {task} wait in {queue}, which it consumes"
                      for (task, queue), count in waiting.items()),
                    *(f"inspect registered: {peer}, which shares {', '.join(sorted(nodes[peer].queues))} with it, "
                      f"knows {', '.join(sorted(more))}" for peer, more in differing.items()),
                    *(f"{who} sends {task} to {queue}, which it consumes" for task, queue, who in sent),
                ),
            )  # fmt: skip


def _ways(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Which task is routed to which queue, and by what."""
    ways: dict[tuple[str, str], str] = {}
    for host, state in sorted(snapshot.reachable().items()):
        said = state.application or Application()
        for task in said.tasks:
            ways.setdefault((task.name, task.route.queue), f"the application, loaded on {host},")
    return [(*way, who) for way, who in ways.items() if not way[0].startswith("celery.")]


def _scheduled_for_nobody(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What beat sends, by what nodes say, and none that answers knows; while one is silent, it may
    be the one.

    Where the application was loaded its schedule is that which counts: `schedule.py` judges it.
    """
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    unseen = fleet.app.nodes and snapshot.broker.unheard
    loaded = any(state.application for state in snapshot.reachable().values())
    if loaded or not nodes or unseen or not nodes.keys() >= own.union(fleet.all_nodes):
        return
    scheduled = {task: name for name, node in sorted(nodes.items()) for task, _ in node.scheduled}
    for task, name in sorted(scheduled.items()):
        if task.startswith("celery."):
            continue
        if not any(task in node.registered for node in nodes.values()):
            yield Finding(
                "schedule.unknown_task",
                task,
                f"the schedule, by the settings that {name} was started with, sends {task}, which"
                " no worker knows: the worker that takes it discards it; correct the name in"
                " beat_schedule, or give the workers the code that has it, then restart them and"
                " beat. If the code is right already, only the restart is missing",
                (
                    f"inspect conf: beat_schedule of {name} has it",
                    f"inspect registered: none of {', '.join(sorted(nodes))} does",
                ),
            )


def _imports(
    fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe, fix: tuple[Change, ...]
) -> Iterator[Finding]:
    missing = sorted(frozenset(fleet.app.expected_tasks) - now.registered)
    yield from imports.faults(fleet, host, state, now)
    yield from imports.two_names(fleet, host, now)
    wanted = state.imports_wanted
    for module, error in ((module, error) for module, error in now.errors.items() if error):
        own = [task for task in missing if _module(task) == module] or missing
        mended = wanted is not None and wanted.loaded and frozenset(own) <= wanted.registered
        yield Finding(
            "task.import_fails",
            host.name,
            f"{module or fleet.app.app} fails to import, so"
            f" {f'{tasks(own)} cannot be' if own else 'none of its tasks is'} registered:"
            f" {error.splitlines()[-1]}",
            (
                *error.splitlines()[-8:],
                *_read(host, state, now, module),
                *_environment(host, state, module, mended=mended),
            ),
            remedy=SET_VALUES if mended else None,
            fix=fix if mended else (),
            blocks=() if mended else (Block(host.name),),
        )


def _mute(host: FleetHost, snapshot: Snapshot, now: ImportProbe) -> Iterator[Finding]:
    """Workers that answer nothing, and would not after a restart.

    **Source:** celery 5.7.0 `worker/consumer/control.py: Control.include_if`; kombu 5.2.4, "What's
    new".
    """
    assert snapshot.broker is not None
    left = "without it nobody knows what they run, have registered or consume"
    if not now.remote_control:
        yield Finding(
            "worker.no_remote_control",
            host.name,
            f"the workers of {host.name} answer nothing, for the application switches remote"
            f" control off: set worker_enable_remote_control to True; {left}",
            (
                (
                    "loaded as a worker loads it, the application has worker_enable_remote_control"
                    " = False"
                ),
            ),
            blocks=(Block(host.name),),
        )
    elif (kombu := _deaf_kombu(now)) and not any(
        host.node(one) in snapshot.broker.nodes for one in host.settings.workers
    ):
        takers = sum(
            one.takes_messages and one.db == snapshot.broker.db
            for one in snapshot.broker.clients or ()
        )
        yield Finding(
            "worker.no_remote_control",
            host.name,
            f"the workers of {host.name} answer nothing, for kombu {kombu} hears no remote control"
            " where global_keyprefix is set: install kombu 5.2.4 or later, and restart them;"
            f" {left}",
            (
                (
                    f"loaded as a worker loads it, the application has kombu {kombu} and a"
                    " global_keyprefix"
                ),
                *(
                    [
                        f"CLIENT LIST: {counted(takers, 'client takes', 'clients take')} messages"
                        " in this db"
                    ]
                    if takers
                    else []
                ),
                "they may be well, and are left running: a restart alone does not help",
            ),
            blocks=(Block(host.name),),
        )


def _deaf_kombu(now: ImportProbe) -> str:
    """The version of a kombu that hears no broadcast under the application's prefix; "" where it
    would.
    """
    said = now.application
    if said is None or not (said.transport_options or {}).get("global_keyprefix"):
        return ""
    version = said.versions.get("kombu", "")
    return version if version in _DEAF_KOMBU else ""


_DEAF_KOMBU = ("5.2.0", "5.2.1", "5.2.2", "5.2.3")


def _module(task: str) -> str:
    return task.rpartition(".")[0]


def discards(
    fleet: Fleet, snapshot: Snapshot, *, repaired: bool
) -> Iterator[tuple[FleetHost, Worker, str, str, int]]:
    """Messages that a worker would throw away once it is started, as (host, worker, queue, task,
    count).

    A worker discards what it does not know, so starting it on a queue with such messages loses
    them. `repaired` asks how it would be with the inventory's environment in place and the selected
    messages taken out. **Source:** celery 5.7.0 `worker/consumer/consumer.py: on_unknown_task`.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        probe = state and (state.imports_wanted if repaired else state.imports_now)
        for worker in host.settings.workers if probe else ():
            node = snapshot.broker.nodes.get(host.node(worker))
            own = node.queues if node else frozenset[str]()
            for queue in snapshot.broker.queues.keys() & set(worker.queues) - own:
                waiting = snapshot.broker.queues[queue]
                for task, count in waiting.by_task.items():
                    taken = (
                        sum(selection.by_task.get(task, 0) for selection in waiting.selected)
                        if repaired
                        else 0
                    )
                    if (
                        probe
                        and probe.loaded
                        and task not in probe.registered
                        and count.count > taken
                    ):
                        yield host, worker, queue, task, count.count - taken


def _read(host: FleetHost, state: HostState, now: ImportProbe, module: str) -> Iterator[str]:
    """Which variables the failing lines read, without those that are told as differing from the
    inventory.
    """
    for name, value in now.variables.get(module, {}).items():
        if name not in drift(host, state):
            by = f", by {host.settings.env_file}" if name in reading_of(host, state).values else ""
            yield (
                f"that line reads {name}, which is"
                f" {'not set' if value is None else repr(value)}{by}"
            )


def _environment(host: FleetHost, state: HostState, module: str, *, mended: bool) -> Iterator[str]:
    """How the environment file differs from the inventory, and what came of the import with the
    inventory's values.
    """
    values, wanted = drift(host, state), state.imports_wanted
    yield from _not_known(host, state)
    yield from _differences(host, state)
    tried = "tried on the host: with the inventory's values"
    if mended:
        yield f"{tried} the import works and these tasks are registered"
    elif wanted and values and _tried(state):
        if wanted.failed:
            yield f"{tried} it could not be loaded: {wanted.failed.splitlines()[0]}"
        elif wanted.errors.get(module) or not wanted.loaded:
            yield f"{tried} the import fails all the same"
        else:
            yield f"{tried} the import works, but these tasks are not registered"
    elif host.settings.env and not values:
        yield (
            f"{host.settings.env_file} has the inventory's values:"
            f" {', '.join(sorted(host.settings.env))}"
        )


def _not_known(host: FleetHost, state: HostState) -> Iterator[str]:
    """What a worker may get of its environment file that the application was not loaded with."""
    environment = reading_of(host, state)
    for place in dict.fromkeys(filter(None, (environment.opaque, *environment.unknown.values()))):
        yield f"{host.settings.env_file}, {place}: the application was loaded without knowing that"


def _differences(host: FleetHost, state: HostState) -> Iterator[str]:
    for name, value in drift(host, state).items():
        now = "not set" if value is None else redact(repr(value))
        yield (
            f"{host.settings.env_file}: {name} is {now}, the inventory says"
            f" {host.settings.env[name]!r}"
        )
