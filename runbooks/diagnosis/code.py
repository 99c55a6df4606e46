"""Faults of the application's code and environment: tasks that are not registered, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, Form, HostState, ImportProbe, QueueState, Severity, Snapshot
from runbooks.core.wording import tasks
from runbooks.hosts.facts import redact
from runbooks.steps.environment import drift


def findings(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A failing import with its traceback, whether the inventory's environment mends it, and the nodes it hit."""
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state and state.imports_now and state.imports_now.failed:
            yield _probe_failed(host, state.imports_now.failed)
        elif state and state.imports_now:
            yield from _imports(fleet, host, state, state.imports_now)
            yield from _mute(host, state.imports_now)
        yield from _options(fleet, host, snapshot)
        if state:
            yield from _unloadable(host, state)
    yield from would_discard(fleet, snapshot, repaired=True)
    if lacking := _lacking(fleet, snapshot):
        yield _not_registered(lacking)
    yield from discarding(fleet, snapshot)


def discarding(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Tasks beyond the expected ones that are sent, or may be, to running workers that throw them away."""
    yield from _discarded(fleet, snapshot)
    yield from _scheduled_for_nobody(fleet, snapshot)


def would_discard(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """A finding for each worker that must not be started; `repaired` as in `discards`."""
    also = ", also with the inventory's values" if repaired else ""
    for node, queue, task, count in discards(fleet, snapshot, repaired=repaired):
        worker, _, host = node.partition("@")
        yield Finding(
            "task.would_be_discarded",
            node,
            f"{count:,} messages of {task} wait in {queue}, and {node} would discard them as soon as it runs",
            (f"imported on the host, the application does not register {task}{also}",),
            blocks=(Block(host, worker),),
        )
    yield from _unreadable(fleet, snapshot, repaired=repaired)


def _unreadable(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """Messages written in a way that the application does not accept, at a queue that its worker is to consume.

    **Source:** kombu 5.7.0 `message.py: Message.__init__`, `serialization.py: SerializerRegistry.loads`; celery 5.7.0
    `worker/consumer/consumer.py: on_decode_error, on_invalid_task, on_unknown_message`: all three acknowledge it.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        probe = (state.imports_wanted if repaired else state.imports_now) if state else None
        if probe is None:
            continue
        for worker in host.settings.workers:
            node = snapshot.broker.nodes.get(host.node(worker))
            for queue in sorted(set(worker.queues) - (node.queues if node else frozenset())):
                for what, count in _refused(probe, snapshot.broker.queues[queue], repaired=repaired).items():
                    yield Finding(
                        "message.would_be_discarded",
                        host.node(worker),
                        f"{count:,} messages in {queue} {what}, and {host.node(worker)} would discard them as soon as "
                        "it runs: let the application accept them, or take them out first",
                        ("told by the application, imported on the host: "
                         f"it accepts {', '.join(sorted(probe.accepts or ())) or 'what is not known'}",),
                        blocks=(Block(host.name, worker.name),),
                    )  # fmt: skip


def _refused(probe: ImportProbe, queue: QueueState, *, repaired: bool) -> dict[str, int]:
    """How many messages the application does not accept, by what is said of them."""
    refused = Counter[str]()
    for form, waiting in queue.forms.items():
        taken = sum(selection.by_form.get(form, 0) for selection in queue.selected) if repaired else 0
        if waiting > taken and (why := _why_refused(probe, form)):
            refused[why] += waiting - taken
    return refused


def _why_refused(probe: ImportProbe, form: Form) -> str:
    if form.compression and probe.compressions is not None and form.compression not in probe.compressions:
        return f"are compressed with {form.compression}, which its Python cannot undo"
    if probe.accepts is not None and form.content_type not in probe.accepts:
        return f"are {form.content_type}, which it does not accept"
    return "" if form.protocol else "name no task"


def _misnamed(fleet: Fleet, host: FleetHost, error: str) -> Iterator[str]:
    package = fleet.app.app.partition(":")[0].partition(".")[0]
    if error.splitlines()[-1] == f"ModuleNotFoundError: No module named '{package}'":
        where = host.settings.directory
        yield f"celery_app is {fleet.app.app}, and {host.settings.python} finds no {package} in {where}"


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


def _probe_failed(host: FleetHost, said: str) -> Finding:
    return Finding(
        "host.probe_failed",
        host.name,
        f"the application on {host.name} could not be asked what it registers: {said.splitlines()[-1]}",
        (
            f"celery_python, {host.settings.python}, did not come so far as to load it",
            *said.splitlines()[-8:],
        ),
        blocks=(Block(host.name),),
    )


def unregistered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A finding for each node that lacks expected tasks: one of several nodes may be mended before the others."""
    for name, missing in _lacking(fleet, snapshot).items():
        yield _not_registered({name: missing})


def _lacking(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[str]]:
    """The expected tasks that nodes of the fleet do not know."""
    assert snapshot.broker is not None
    expected = frozenset(fleet.app.expected_tasks)
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    lacking = {name: expected - node.registered for name, node in snapshot.broker.nodes.items() if name in own}
    return {name: missing for name, missing in lacking.items() if missing}


def _not_registered(lacking: Mapping[str, frozenset[str]]) -> Finding:
    unknown = frozenset[str]().union(*lacking.values())
    return Finding(
        "task.not_registered",
        ", ".join(sorted(lacking)),
        f"running workers do not know {tasks(unknown)}: such a message is discarded as soon as it is taken",
        tuple(f"inspect registered: {name} lacks {', '.join(sorted(lacking[name]))}" for name in sorted(lacking)),
        remedy="restart the workers once the import works",
    )


def _discarded(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Tasks that running nodes throw away though others know them, or though they wait; beside the expected ones.

    A node is compared with those that consume nothing but its own queues: what is sent to them may come to it.
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
        unknown = frozenset(task for task, _ in waiting).union(*differing.values())
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
                ),
            )  # fmt: skip


def _scheduled_for_nobody(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What beat sends and no worker that answers knows; while one of the inventory's is silent, it may be the one."""
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    if not nodes or not nodes.keys() >= own.union(fleet.all_nodes):
        return
    scheduled = {task: name for name, node in sorted(nodes.items()) for task in node.scheduled}
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


def _imports(fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe) -> Iterator[Finding]:
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
        tried = wanted is not None and not wanted.failed and not wanted.errors.get(module)
        mended = tried and wanted is not None and frozenset(own) <= wanted.registered
        yield Finding(
            "task.import_fails",
            host.name,
            f"{module or fleet.app.app} fails to import, so "
            f"{f'{tasks(own)} cannot be' if own else 'none of its tasks is'} registered: {error.splitlines()[-1]}",
            (*error.splitlines()[-8:], *_misnamed(fleet, host, error), *_environment(host, state, mended)),
            remedy="set the inventory's values in the environment file, then restart" if mended else None,
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
                    if probe and not probe.failed and task not in probe.registered and count.count > taken:
                        yield host.node(worker), queue, task, count.count - taken


def _environment(host: FleetHost, state: HostState, mended: bool) -> Iterator[str]:
    values = drift(host, state)
    for name, value in values.items():
        now = "not set" if value is None else redact(repr(value), ())
        yield f"{host.settings.env_file}: {name} is {now}, the inventory says {host.settings.env[name]!r}"
    if mended:
        yield "tried on the host: with the inventory's values the import works and these tasks are registered"
    elif values and state.imports_wanted and not state.imports_wanted.failed:
        yield "tried on the host: with the inventory's values the import fails all the same"
    elif host.settings.env and not values:
        yield f"{host.settings.env_file} has the inventory's values: {', '.join(sorted(host.settings.env))}"
