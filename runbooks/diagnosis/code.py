"""Faults of the application's code and environment: tasks that are not registered, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, Form, HostState, ImportProbe, QueueState, Severity, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import tasks
from runbooks.diagnosis.environment import drift
from runbooks.diagnosis.services import changes_of, control
from runbooks.hosts.facts import redact


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """A failing import with its traceback, whether the inventory's environment mends it, and the nodes it hit.

    What mends it are changes of the findings that are `known` already.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state and state.imports_now and state.imports_now.failed:
            yield _probe_failed(fleet, host, state, state.imports_now.failed, environment_of(host, known))
        elif state and state.imports_now:
            yield from _imports(fleet, host, state, state.imports_now, environment_of(host, known))
            yield from _mute(host, state.imports_now)
        yield from _options(fleet, host, snapshot)
        if state:
            yield from _unloadable(host, state)
    yield from would_discard(fleet, snapshot, repaired=True)
    yield from discarding(fleet, snapshot)
    yield from _discarded_unread(fleet, snapshot)
    yield from _scheduled_nowhere(fleet, snapshot)


def discarding(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Tasks beyond the expected ones that are sent, or may be, to running workers that throw them away."""
    yield from _discarded(fleet, snapshot)
    yield from _scheduled_for_nobody(fleet, snapshot)


def would_discard(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """A finding for each worker that must not be started; `repaired` as in `discards`."""
    for node, queue, task, count in discards(fleet, snapshot, repaired=repaired):
        worker, _, host = node.partition("@")
        also = ", also with the inventory's values" if repaired and _tried(snapshot.reachable()[host]) else ""
        yield Finding(
            "task.would_be_discarded",
            node,
            f"{count:,} messages of {task} wait in {queue}, and {node} would discard them as soon as it runs",
            (f"imported on the host, the application does not register {task}{also}",),
            blocks=(Block(host, worker),),
        )
    yield from _unreadable(fleet, snapshot, repaired=repaired)


def _unreadable(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """Messages written in a way that the application does not accept, at a queue that its worker is to consume."""
    for host, worker, queue, probe in _queues_of_workers(fleet, snapshot, consumed=False, repaired=repaired):
        node, blocks, left = host.node(worker), (Block(host.name, worker.name),), _left(queue, repaired=repaired)
        for what, count in _refused(probe, left).items():
            yield Finding(
                "message.would_be_discarded",
                node,
                f"{count:,} messages in {queue.name} {what}, and {node} would discard them as soon as it runs: let the "
                "application accept them, or take them out first",
                tuple(_what_it_accepts(probe)),
                blocks=blocks,
            )
        if not repaired and queue.malformed.count:
            yield Finding(
                "message.would_kill",
                node,
                f"{queue.malformed.count:,} items in {queue.name} are no Celery messages, and each would kill {node} "
                f"and be lost: take them out first, with {Command('clean-queues')}",
                queue.malformed.raw_samples,
                blocks=blocks,
            )
        yield from _unjudged(node, queue, probe, left, blocks)


def _discarded_unread(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Messages that a running worker takes, and that its application does not accept; or of which nobody can tell."""
    for host, worker, queue, probe in _queues_of_workers(fleet, snapshot, consumed=True, repaired=False):
        node, left = host.node(worker), _left(queue, repaired=True)
        for what, count in _refused(probe, left).items():
            yield Finding(
                "message.discarded",
                node,
                f"{count:,} messages in {queue.name} {what}, and {node}, which consumes it, discards them as soon as "
                "it takes them: take them out, or let the application accept them and restart it",
                (*_what_it_accepts(probe), *((_LOADED_NOW,) if probe.loaded else ())),
            )
        yield from _unjudged(node, queue, probe, left)


_LOADED_NOW = "it was loaded now: what a worker does that was started with other settings is not known"


def _unjudged(
    node: str, queue: QueueState, probe: ImportProbe, left: Mapping[Form, int], blocks: tuple[Block, ...] = ()
) -> Iterator[Finding]:
    unknown = {
        form: count
        for form, count in left.items()
        if form != Form() and (probe.accepts is None or (form.compression and probe.compressions is None))
    }
    if unknown:
        yield Finding(
            "message.unjudged",
            node,
            f"whether {node} accepts {sum(unknown.values()):,} messages in {queue.name} is not known, for its "
            "application does not say",
            tuple(
                f"{count:,} × {form.content_type}{f' compressed with {form.compression}' * bool(form.compression)}"
                for form, count in unknown.items()
            ),
            severity=Severity.WARNING,
            blocks=blocks,
        )


def _queues_of_workers(
    fleet: Fleet, snapshot: Snapshot, *, consumed: bool, repaired: bool
) -> Iterator[tuple[FleetHost, Worker, QueueState, ImportProbe]]:
    """The queues that workers consume, or else those that they should and do not, where the application was tried.

    With what it said: with the inventory's environment where that is `repaired`.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        probe = (state.imports_wanted if repaired else state.imports_now) if state else None
        for worker in host.settings.workers if probe else ():
            node = snapshot.broker.nodes.get(host.node(worker))
            own = node.queues if node else frozenset[str]()
            queues = own & snapshot.broker.queues.keys() if consumed else set(worker.queues) - own
            for queue in sorted(queues):
                assert probe is not None
                yield host, worker, snapshot.broker.queues[queue], probe


def _left(queue: QueueState, *, repaired: bool) -> dict[Form, int]:
    """How many messages wait by how they are written, without those that rules take out where that is `repaired`."""
    left = _forms(queue.forms, sum(task.count for task in queue.by_task.values()) + queue.unreadable)
    for selection in queue.selected if repaired else ():
        left.subtract(_forms(selection.by_form, selection.count))
    return {form: count for form, count in left.items() if count > 0}


def _forms(unusual: Mapping[Form, int], count: int) -> Counter[Form]:
    """So many messages by how they are written: those that are not told are as Celery writes them by default."""
    return Counter({Form(): count - sum(unusual.values()), **unusual})


def _refused(probe: ImportProbe, left: Mapping[Form, int]) -> dict[str, int]:
    """How many of these the application does not accept, by what is said of them.

    **Source:** kombu 5.7.0 `message.py: Message.__init__`, `serialization.py: SerializerRegistry.loads`; celery 5.7.0
    `worker/consumer/consumer.py: on_decode_error, on_invalid_task, on_unknown_message`: all three acknowledge it.
    """
    refused = Counter[str]()
    for form, count in left.items():
        if why := _why_refused(probe, form):
            refused[why] += count
    return refused


def _why_refused(probe: ImportProbe, form: Form) -> str:
    kind = form.content_type
    if form.compression and probe.compressions is not None and form.compression not in probe.compressions:
        return f"are compressed with {form.compression}, which its Python cannot undo"
    if probe.accepts is not None and kind not in probe.accepts:
        return f"are {kind}, which it does not accept"
    if probe.decodes is not None and kind not in probe.decodes:
        return f"are {kind}, for which it has no decoder"
    if kind in _TEXTS and probe.encodings is not None and form.encoding not in probe.encodings:
        return f"are encoded as {form.encoding}, which its Python does not know"
    return "" if form.protocol else "name no task"


_TEXTS = ("application/data", "application/text")
"""What has no decoder of its own. **Source:** kombu 5.7.0 `serialization.py: TRUSTED_CONTENT`."""


def _what_it_accepts(probe: ImportProbe) -> Iterator[str]:
    if probe.accepts is not None:
        yield f"imported on the host, the application accepts {', '.join(sorted(probe.accepts))}"


def _unloadable(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """**Source:** systemd 252 `env-file.c: load_env_file_push`: such a file keeps the service from starting."""
    file = state.files.get(host.settings.env_file)
    lines = (file.content or b"").split(b"\n") if file and host.has_systemd else []
    bad = [n for n, line in enumerate(lines, 1) if line.lstrip()[:1] not in (b"#", b";") and not _is_utf8(line)]
    if bad:
        yield Finding(
            "env.unloadable",
            host.name,
            f"systemd would refuse {host.settings.env_file}, and start no service with it: line {bad[0]} is not UTF-8",
            ("what runs goes on with the environment it has: correct that line before anything is restarted",),
            blocks=(Block(host.name),),
        )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _probe_failed(fleet: Fleet, host: FleetHost, state: HostState, said: str, fix: tuple[Change, ...]) -> Finding:
    why, *besides = said.splitlines()
    wanted = state.imports_wanted
    mended = wanted is not None and wanted.loaded and wanted.registered >= frozenset(fleet.app.expected_tasks)
    tried = "tried on the host: with the inventory's values it is loaded, and registers the expected tasks"
    return Finding(
        "host.probe_failed",
        host.name,
        f"the application on {host.name} could not be asked what it registers: {why}",
        (*besides[-8:], *((*_differences(host, state), tried) if mended else ())),
        remedy=_SET_VALUES if mended else None,
        fix=fix if mended else (),
        blocks=() if mended else (Block(host.name),),
    )


_SET_VALUES = "set the inventory's values in the environment file, then restart"


def _tried(state: HostState) -> bool:
    """Whether the application was loaded with the inventory's values too, as they differ from those that it has."""
    return state.imports_wanted is not None and state.imports_wanted is not state.imports_now


def unregistered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A finding for each node that lacks expected tasks: one of several nodes may be mended before the others."""
    for name, missing in _lacking(fleet, snapshot).items():
        yield _not_registered({name: missing}, ())


def _lacking(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[str]]:
    """The expected tasks that nodes of the fleet do not know."""
    assert snapshot.broker is not None
    expected = frozenset(fleet.app.expected_tasks)
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    lacking = {name: expected - node.registered for name, node in snapshot.broker.nodes.items() if name in own}
    return {name: missing for name, missing in lacking.items() if missing}


def not_registered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """One finding of all nodes that lack expected tasks, with a restart of each."""
    if lacking := _lacking(fleet, snapshot):
        states = snapshot.reachable()
        restarts = tuple(
            control(host, worker.name, "restart", f"lacks {tasks(lacking[host.node(worker)])}", snapshot)
            for host in fleet.hosts
            for worker in host.settings.workers
            if host.node(worker) in lacking and host.name in states
            if (service := states[host.name].services.get(worker.name)) and service.pid is not None
        )
        yield _not_registered(lacking, restarts)


def environment_of(host: FleetHost, known: Sequence[Finding]) -> tuple[Change, ...]:
    """The changes that put a host's environment right, and start or restart what loads it."""
    services = {(host.name, service) for service in host.services}
    set_ = (change for finding in known if finding.code == "environment.differs" for change in finding.fix)
    return (*(change for change in set_ if change.host == host.name), *changes_of(known, services))


def _not_registered(lacking: Mapping[str, frozenset[str]], restarts: tuple[Change, ...]) -> Finding:
    unknown = frozenset[str]().union(*lacking.values())
    return Finding(
        "task.not_registered",
        ", ".join(sorted(lacking)),
        f"running workers do not know {tasks(unknown)}: such a message is discarded as soon as it is taken",
        tuple(f"inspect registered: {name} lacks {', '.join(sorted(lacking[name]))}" for name in sorted(lacking)),
        remedy="restart the workers once the import works" if restarts else None,
        fix=restarts,
    )


def _discarded(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Tasks that running nodes throw away though others know them, or though they wait; beside the expected ones.

    A node is compared with those that consume nothing but its own queues: what is sent to them may come to it. Where
    the application was loaded, also with what its router sends to the node's queues.
    Celery's own tasks are not in the answers, and are not compared.
    **Source:** celery 5.7.0 `worker/control.py: registered`; `worker/consumer/consumer.py: on_unknown_task`.
    """
    assert snapshot.broker is not None
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    nodes = {name: node for name, node in sorted(snapshot.broker.nodes.items()) if name in own and node.queues}
    for name, node in nodes.items():
        known = node.registered | frozenset(fleet.app.expected_tasks)
        waiting = {
            (task, queue): count.count
            for queue in sorted(node.queues & snapshot.broker.queues.keys())
            for task, count in snapshot.broker.queues[queue].by_task.items()
            if task not in known and not task.startswith("celery.")
        }
        peers = [peer for peer in nodes.values() if peer is not node and peer.queues and peer.queues <= node.queues]
        differing = {peer.name: peer.registered - known for peer in peers if peer.registered - known}
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
    """Which task is sent to which queue, and by what; of tasks that some node knows, or the application registers."""
    assert snapshot.broker is not None
    somewhere = frozenset[str]().union(*(node.registered for node in snapshot.broker.nodes.values()))
    ways: dict[tuple[str, str], str] = {}
    for host, state in sorted(snapshot.reachable().items()):
        probe = state.imports_now or ImportProbe(frozenset(), {})
        for entry in probe.schedule:
            if entry.task in somewhere | probe.registered:
                ways.setdefault((entry.task, entry.queue), f"the schedule's {entry.name}")
        for task, queue in sorted(probe.routes.items()):
            ways.setdefault((task, queue), f"the application, loaded on {host},")
    return [(*way, who) for way, who in ways.items() if not way[0].startswith("celery.")]


def _scheduled_for_nobody(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What beat sends and no worker that answers knows; while one of the inventory's is silent, it may be the one."""
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    if not nodes or not nodes.keys() >= own.union(fleet.all_nodes):
        return
    scheduled = {task: name for name, node in sorted(nodes.items()) for task, _ in node.scheduled}
    for task, name in sorted(scheduled.items()):
        if not task.startswith("celery.") and not any(task in node.registered for node in nodes.values()):
            yield Finding(
                "task.scheduled_for_nobody",
                task,
                f"the schedule sends {task}, which no worker knows: the worker that takes it discards it; correct the "
                "name in beat_schedule, or give the workers the code that has it, then restart them and beat",
                (
                    f"inspect conf: beat_schedule of {name} has it",
                    f"inspect registered: none of {', '.join(sorted(nodes))} does",
                ),
            )


def _scheduled_nowhere(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What the schedule sends to a queue that nobody consumes, or cannot send; once, whichever host told it."""
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    consumed = {*fleet.consumed}.union(*(node.queues for node in nodes.values()))
    told = {
        entry: host
        for host, state in sorted(snapshot.reachable().items(), reverse=True)
        for entry in (state.imports_now.schedule if state.imports_now else ())
    }
    for entry, host in told.items():
        if entry.error:
            yield Finding(
                "schedule.unsendable",
                entry.name,
                f"the schedule's {entry.name} cannot be sent: correct its options or the application's task_queues",
                (f"Celery's router, in the application loaded on {host}, says of {entry.task}: {entry.error}",),
            )
        elif entry.queue and entry.queue not in consumed:
            yield Finding(
                "schedule.no_consumer",
                entry.name,
                f"the schedule's {entry.name} sends {entry.task} to {entry.queue}, which no worker consumes: its "
                "messages pile up there; correct the queue, or let a worker consume it",
                (
                    f"told by Celery's router, in the application loaded on {host}",
                    f"by the inventory no worker consumes it, nor does any of the {len(nodes)} nodes that answer",
                ),
                severity=Severity.WARNING,
            )


def _imports(
    fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe, fix: tuple[Change, ...]
) -> Iterator[Finding]:
    missing = sorted(frozenset(fleet.app.expected_tasks) - now.registered)
    never = [task for task in missing if now.errors.get(_module(task), None if _module(task) else "") == ""]
    if never:
        yield Finding(
            "task.never_imported",
            host.name,
            f"{tasks(never)}: the application never imports it, or has no such task",
            (
                f"loaded as a worker loads it, `{fleet.app.app}` registers {len(now.registered)} tasks, not these",
                *(f"imported by hand, {module} works" for module in sorted({_module(task) for task in never} - {""})),
            ),
            blocks=(Block(host.name),),
        )
    wanted = state.imports_wanted
    for module, error in ((module, error) for module, error in now.errors.items() if error):
        own = [task for task in missing if _module(task) == module] or missing
        mended = wanted is not None and wanted.loaded and frozenset(own) <= wanted.registered
        yield Finding(
            "task.import_fails",
            host.name,
            f"{module or fleet.app.app} fails to import, so "
            f"{f'{tasks(own)} cannot be' if own else 'none of its tasks is'} registered: {error.splitlines()[-1]}",
            (*error.splitlines()[-8:], *_environment(host, state, module, mended=mended)),
            remedy=_SET_VALUES if mended else None,
            fix=fix if mended else (),
            blocks=() if mended else (Block(host.name),),
        )


def _mute(host: FleetHost, now: ImportProbe) -> Iterator[Finding]:
    """**Source:** celery 5.7.0 `worker/consumer/control.py: Control.include_if`."""
    if not now.remote_control:
        yield Finding(
            "worker.no_remote_control",
            host.name,
            f"the workers of {host.name} answer nothing, for the application switches remote control off: set "
            "worker_enable_remote_control to True; without it nobody knows what they run, have registered or consume",
            ("loaded as a worker loads it, the application has worker_enable_remote_control = False",),
            blocks=(Block(host.name),),
        )


def _options(fleet: Fleet, host: FleetHost, snapshot: Snapshot) -> Iterator[Finding]:
    """Transport options that the application has otherwise, by its nodes or, with the inventory's environment, loaded.

    With another prefix or separator no question arrives at the workers, so that restarting them mends nothing.
    **Source:** kombu 5.7.0 `transport/redis.py: Channel.from_transport_options`.
    """
    assert snapshot.broker is not None
    here, state = fleet.app.broker_options, snapshot.reachable().get(host.name)
    heard = {"global_keyprefix": here.global_keyprefix, "sep": here.sep}  # of those who answer
    nodes = (snapshot.broker.nodes.get(host.node(worker)) for worker in host.settings.workers)
    told = [{**heard, **node.options} for node in nodes if node and node.options is not None]
    if state and state.imports_wanted and state.imports_wanted.options is not None:
        told.append(dict(state.imports_wanted.options))
    if differing := next(filter(None, map(here.differing, told)), None):
        yield Finding(
            "broker.options_differ",
            host.name,
            f"the application on {host.name} has another {', '.join(differing)} than the inventory, by which all is "
            "judged here: correct celery_broker_options, or the application's broker_transport_options",
            tuple(f"{name}: the application has {own!r}, the inventory {ours!r}"
                  for name, (own, ours) in differing.items()),
            severity=Severity.ERROR if _UNHEARD & differing.keys() else Severity.WARNING,
            blocks=(Block(host.name),) if _UNHEARD & differing.keys() else (),
        )  # fmt: skip


_UNHEARD = frozenset({"global_keyprefix", "sep"})
"""The options without which a worker does not hear what it is asked."""


def _module(task: str) -> str:
    return task.rpartition(".")[0]


def discards(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[tuple[str, str, str, int]]:
    """Messages that a worker would throw away once it is started, as (node, queue, task, count).

    A worker discards what it does not know, so starting it on a queue with such messages loses them. `repaired` asks
    how it would be with the inventory's environment in place and the selected messages taken out.
    **Source:** celery 5.7.0 `worker/consumer/consumer.py: on_unknown_task`.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        probe = state and (state.imports_wanted if repaired else state.imports_now)
        for worker in host.settings.workers if probe else ():
            node = snapshot.broker.nodes.get(host.node(worker))
            for queue in set(worker.queues) - (node.queues if node else frozenset()):
                waiting = snapshot.broker.queues[queue]
                for task, count in waiting.by_task.items():
                    taken = sum(selection.by_task.get(task, 0) for selection in waiting.selected) if repaired else 0
                    if probe and probe.loaded and task not in probe.registered and count.count > taken:
                        yield host.node(worker), queue, task, count.count - taken


def _environment(host: FleetHost, state: HostState, module: str, *, mended: bool) -> Iterator[str]:
    """How the environment file differs from the inventory, and what came of the import with the inventory's values."""
    values, wanted = drift(host, state), state.imports_wanted
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
        yield f"{host.settings.env_file} has the inventory's values: {', '.join(sorted(host.settings.env))}"


def _differences(host: FleetHost, state: HostState) -> Iterator[str]:
    for name, value in drift(host, state).items():
        now = "not set" if value is None else redact(repr(value), ())
        yield f"{host.settings.env_file}: {name} is {now}, the inventory says {host.settings.env[name]!r}"
