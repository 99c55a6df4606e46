"""Find faults of the application's code and environment: tasks that are not registered, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

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
    NodeState,
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

SET_VALUES = "set the inventory's values in the environment file, then restart"

_SHOWN_LINES = 8

_LOADED_NOW = (
    "it was loaded now: what a worker accepts that was started with other settings is not known"
)
_ROUTED = "the application, as it was loaded, routes these to queues that the worker consumes"
_TRIED = "tried on the host: with the inventory's values"

_TEXTS = ("application/data", "application/text")
"""Types that need no decoder. **Source:** kombu 5.7.0 `serialization.py: TRUSTED_CONTENT`."""

_DEAF_KOMBU = ("5.2.0", "5.2.1", "5.2.2", "5.2.3")


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """Yield failing imports with tracebacks, workers that do not answer, and what is discarded.

    A fix that sets the inventory's environment consists of changes of `known` findings.
    """
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state is None:
            continue
        if state.not_loaded:
            yield Finding(
                "host.not_loaded",
                host.name,
                f"the application was not loaded on {host.name}, so what it registers is not known:"
                f" {state.not_loaded}",
                severity=Severity.INFO,
            )
        now = state.imports_now
        if now is None:
            continue
        fix = environment_of(host, known)
        if now.failed:
            yield _probe_failed(fleet, host, state, now.failed, fix)
        else:
            yield from _imports(fleet, host, state, now, fix)
            yield from _mute(host, snapshot, now)
    yield from would_discard(fleet, snapshot, repaired=True)
    yield from discarding(fleet, snapshot)
    yield from _discarded_unread(fleet, snapshot)


def discarding(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the tasks, beyond the expected ones, that running workers discard."""
    yield from _discarded(fleet, snapshot)
    yield from _scheduled_for_nobody(fleet, snapshot)


def would_discard(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """Yield a finding for each worker that must not be started; `repaired` as in `discards`."""
    for host, worker, queue, task, count in discards(fleet, snapshot, repaired=repaired):
        node = host.node(worker)
        waits = counted(count, f"message of {task} waits", f"messages of {task} wait")
        evidence = f"imported on the host, the application does not register {task}"
        if repaired and _tried(snapshot.reachable()[host.name]):
            evidence += ", not even with the inventory's values"
        yield Finding(
            "task.would_be_discarded",
            node,
            f"{waits} in {queue}, and {node} would discard {them(count)} as soon as it runs",
            (evidence,),
            blocks=(Block(host.name, worker.known_as),),
        )
    yield from _unreadable(fleet, snapshot, repaired=repaired)


def _unreadable(fleet: Fleet, snapshot: Snapshot, *, repaired: bool) -> Iterator[Finding]:
    """Yield the messages whose form is not accepted by the worker that should consume them."""
    for host, worker, queue, probe in _queues_of_workers(
        fleet, snapshot, consumed=False, repaired=repaired
    ):
        node = host.node(worker)
        blocks = (Block(host.name, worker.known_as),)
        left = _left(queue, repaired=repaired)
        for what, count in _refused(probe, left).items():
            yield Finding(
                "message.would_be_discarded",
                node,
                f"{_are(count, queue)} {what}, and {node} would discard {them(count)} as soon as it"
                f" runs: make the application accept {them(count)}, or archive {them(count)} first",
                tuple(_what_it_accepts(probe)),
                blocks=blocks,
            )
        malformed = queue.malformed.count
        if not repaired and malformed:
            yield Finding(
                "message.would_kill",
                node,
                f"{counted(malformed, 'malformed item')} in {queue.name}: each would kill {node}"
                f" and may be lost; archive {them(malformed)} first:"
                f" {Command('clean-queues', '--malformed')}",
                queue.malformed.raw_samples,
                blocks=blocks,
            )
        yield from _unjudged(node, queue, probe, left, blocks)


def _discarded_unread(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the messages that a running worker takes and does not accept, or may not accept."""
    for host, worker, queue, probe in _queues_of_workers(
        fleet, snapshot, consumed=True, repaired=False
    ):
        node = host.node(worker)
        left = _left(queue, repaired=True)
        loaded = (_LOADED_NOW,) if probe.loaded else ()
        for what, count in _refused(probe, left).items():
            yield Finding(
                "message.discarded",
                node,
                f"{_are(count, queue)} {what}, and {node}, which consumes it, discards"
                f" {them(count)} on receipt: archive {them(count)}, or make the application accept"
                f" {them(count)} and restart it",
                (*_what_it_accepts(probe), *loaded),
            )
        yield from _unjudged(node, queue, probe, left)


def _unjudged(
    node: str,
    queue: QueueState,
    probe: ImportProbe,
    left: Mapping[Form, int],
    blocks: tuple[Block, ...] = (),
) -> Iterator[Finding]:
    unknown = {form: count for form, count in left.items() if _is_unknown(probe, form)}
    if unknown:
        evidence = []
        for form, count in unknown.items():
            compressed = f" compressed with {form.compression}" if form.compression else ""
            evidence.append(f"{count:,} × {form.content_type}{compressed}")
        messages = counted(sum(unknown.values()), "message")
        yield Finding(
            "message.unjudged",
            node,
            f"whether {node} accepts {messages} in {queue.name} is not known, because its"
            " application does not say",
            tuple(evidence),
            severity=Severity.WARNING,
            blocks=blocks,
        )


def _is_unknown(probe: ImportProbe, form: Form) -> bool:
    """Return whether the application does not say if it accepts messages of this form."""
    if form == Form():
        return False
    return probe.accepts is None or bool(form.compression and probe.compressions is None)


def _queues_of_workers(
    fleet: Fleet, snapshot: Snapshot, *, consumed: bool, repaired: bool
) -> Iterator[tuple[FleetHost, Worker, QueueState, ImportProbe]]:
    """Yield the queues that workers consume, or those that they should and do not.

    Each comes with what the application said on the host; `repaired`: with the inventory's
    environment.
    """
    assert snapshot.broker is not None
    for host, worker, probe in _probed(fleet, snapshot, repaired=repaired):
        node = snapshot.broker.nodes.get(host.node(worker))
        own = node.queues if node else frozenset[str]()
        queues = own if consumed else set(worker.queues) - own
        for queue in sorted(queues & snapshot.broker.queues.keys()):
            yield host, worker, snapshot.broker.queues[queue], probe


def _probed(
    fleet: Fleet, snapshot: Snapshot, *, repaired: bool
) -> Iterator[tuple[FleetHost, Worker, ImportProbe]]:
    """Yield the workers of each host on which the application was tried, with what it said."""
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state is None:
            continue
        probe = state.imports_wanted if repaired else state.imports_now
        if probe is None:
            continue
        for worker in host.settings.workers:
            yield host, worker, probe


def _left(queue: QueueState, *, repaired: bool) -> dict[Form, int]:
    """Count the messages that wait, by form; `repaired`: without those that rules select."""
    waiting = sum(task.count for task in queue.by_task.values()) + queue.unreadable
    left = _forms(queue.forms, waiting)
    if repaired:
        for selection in queue.selected:
            left.subtract(_forms(selection.by_form, selection.count))
    return {form: count for form, count in left.items() if count > 0}


def _forms(unusual: Mapping[Form, int], count: int) -> Counter[Form]:
    """Count messages by form; those that are not `unusual` have Celery's default form."""
    return Counter({Form(): count - sum(unusual.values()), **unusual})


def _are(count: int, queue: QueueState) -> str:
    return counted(count, f"message in {queue.name} is", f"messages in {queue.name} are")


def _refused(probe: ImportProbe, left: Mapping[Form, int]) -> dict[str, int]:
    """Count the messages that the application does not accept, by the reason.

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
    compression = form.compression
    if compression and probe.compressions is not None and compression not in probe.compressions:
        return f"compressed with {compression}, which its Python cannot decompress"
    if probe.accepts is not None and kind not in probe.accepts:
        return f"{kind}, which it does not accept"
    if probe.decodes is not None and kind not in probe.decodes:
        return f"{kind}, for which it has no decoder"
    if kind in _TEXTS and probe.encodings is not None and form.encoding not in probe.encodings:
        return f"encoded as {form.encoding}, which its Python does not know"
    return "" if form.protocol else "without a task"


def _what_it_accepts(probe: ImportProbe) -> Iterator[str]:
    if probe.accepts is not None:
        yield f"imported on the host, the application accepts {', '.join(sorted(probe.accepts))}"


def _probe_failed(
    fleet: Fleet, host: FleetHost, state: HostState, said: str, fix: tuple[Change, ...]
) -> Finding:
    why, *more = said.splitlines()
    wanted = state.imports_wanted
    expected = frozenset(fleet.app.expected_tasks)
    fixed = wanted is not None and wanted.loaded and wanted.registered >= expected
    evidence = [*more[-_SHOWN_LINES:], *_not_known(host, state)]
    if fixed:
        evidence += _differences(host, state)
        evidence.append(f"{_TRIED} it loads, and registers the expected tasks")
    finding = Finding(
        "host.probe_failed",
        host.name,
        f"could not ask the application on {host.name} what it registers: {why}",
        tuple(evidence),
    )
    return with_values(finding, fix) if fixed else blocking(finding, host)


def with_values(finding: Finding, fix: tuple[Change, ...]) -> Finding:
    """Return the finding of a fault that the inventory's environment fixes."""
    return replace(finding, remedy=SET_VALUES, fix=fix)


def blocking(finding: Finding, *hosts: FleetHost) -> Finding:
    """Return the finding of a fault that lets nothing start on these hosts."""
    return replace(finding, blocks=tuple(Block(host.name) for host in hosts))


def _tried(state: HostState) -> bool:
    """Return whether the application was also loaded with other values, those of the inventory."""
    return state.imports_wanted is not None and state.imports_wanted is not state.imports_now


def unregistered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield a finding for each node that lacks expected tasks: one may be fixed before others."""
    for name, missing in _lacking(fleet, snapshot).items():
        yield _not_registered(fleet, {name: missing}, ())


def _lacking(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[str]]:
    """Return the expected tasks that nodes of the fleet do not know (node → tasks)."""
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    lacking = {}
    for name, own in expected_by(fleet, snapshot).items():
        missing = own - nodes[name].registered if name in nodes else frozenset[str]()
        if missing:
            lacking[name] = missing
    return lacking


def not_registered(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield one finding for all nodes that lack expected tasks, with the restarts that may help."""
    lacking = _lacking(fleet, snapshot)
    if not lacking:
        return
    restarts = []
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        for worker in host.settings.workers:
            missing = lacking.get(host.node(worker))
            if state is None or not missing:
                continue
            service = state.services.get(worker.known_as)
            if service and service.pid is not None and _would_know(state, missing):
                why = f"does not register {tasks(missing)}"
                restarts.append(control(host, worker.known_as, "restart", why, snapshot))
    loaded = _all_know(fleet, snapshot, lacking)
    yield _not_registered(fleet, lacking, tuple(restarts), loaded=loaded)


def _all_know(fleet: Fleet, snapshot: Snapshot, lacking: Mapping[str, frozenset[str]]) -> bool:
    """Return whether the application, loaded on each node's host, has everything that it lacks."""
    known: dict[str, Application | None] = {}
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        for worker in host.settings.workers:
            known[host.node(worker)] = state.application if state else None
    for node, missing in lacking.items():
        own = known.get(node)
        if own is None or not all(own.task(name) for name in missing):
            return False
    return True


def _would_know(state: HostState, missing: frozenset[str]) -> bool:
    """Return whether a worker that is started now may know some of these tasks.

    It may if the application was not loaded there, or has one of them (with the inventory's
    environment, if that was tried).
    """
    said = state.imports_wanted.application if state.imports_wanted else state.application
    return said is None or any(said.task(name) for name in missing)


def environment_of(host: FleetHost, known: Sequence[Finding]) -> tuple[Change, ...]:
    """Return the changes that fix a host's environment, and start or restart what loads it."""
    services = {(host.name, service) for service in host.services}
    changes = []
    for finding in known:
        if finding.code == "environment.differs":
            changes += [change for change in finding.fix if change.host == host.name]
    return (*changes, *changes_of(known, services))


def _not_registered(
    fleet: Fleet,
    lacking: Mapping[str, frozenset[str]],
    restarts: tuple[Change, ...],
    *,
    loaded: bool = False,
) -> Finding:
    """`loaded`: the application has the tasks now, so a restart is enough."""
    remedy = "restart the workers" if loaded else "restart the workers once the import works"
    unknown = frozenset[str]().union(*lacking.values())
    evidence = []
    for name, missing in sorted(lacking.items()):
        evidence.append(f"inspect registered: {name} lacks {', '.join(sorted(missing))}")
    if not fleet.app.expected_tasks:
        evidence.append(_ROUTED)
    return Finding(
        "task.not_registered",
        ", ".join(sorted(lacking)),
        f"running workers do not know {tasks(unknown)}, and discard such messages on receipt",
        tuple(evidence),
        remedy=remedy if restarts else None,
        fix=restarts,
    )


def _discarded(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the tasks that running nodes discard though others know them, or though they wait.

    A node is compared with those that consume nothing but its own queues: what is sent to them may
    come to it. If the application was loaded, also with what its router sends to the node's queues.
    Celery's own tasks are not in the answers, and are not compared. **Source:** celery 5.7.0
    `worker/control.py: registered`; `worker/consumer/consumer.py: on_unknown_task`.
    """
    assert snapshot.broker is not None
    expected = expected_by(fleet, snapshot)
    nodes = {}
    for name, node in sorted(snapshot.broker.nodes.items()):
        if name in expected and node.queues:
            nodes[name] = node
    ways = _ways(snapshot)
    for name, node in nodes.items():
        known = node.registered | expected[name]
        waiting = _waiting_unknown(snapshot, node, known)
        differing = []
        for peer in nodes.values():
            more = peer.registered - known
            if more and peer is not node and peer.queues <= node.queues:
                differing.append((peer, more))
        sent = [way for way in ways if way[1] in node.queues and way[0] not in known]
        unknown = frozenset(task for task, *_ in (*waiting, *sent))
        unknown = unknown.union(*(more for _, more in differing))
        if not unknown:
            continue
        evidence = []
        for (task, queue), count in waiting.items():
            evidence.append(f"{count:,} × {task} wait in {queue}, which it consumes")
        for peer, more in differing:
            shared = ", ".join(sorted(peer.queues))
            evidence.append(
                f"inspect registered: {peer.name}, which shares {shared} with it, knows"
                f" {', '.join(sorted(more))}"
            )
        for task, queue, who in sent:
            evidence.append(f"{who} sends {task} to {queue}, which it consumes")
        yield Finding(
            "task.discarded",
            name,
            f"{name} does not know {tasks(unknown)}, and discards such messages on receipt:"
            f" give it the code that has {them(len(unknown))} and restart it, or make it consume"
            " other queues",
            tuple(evidence),
        )


def _waiting_unknown(
    snapshot: Snapshot, node: NodeState, known: frozenset[str]
) -> dict[tuple[str, str], int]:
    """Count the messages that wait for the node and whose (task, queue) it does not know."""
    assert snapshot.broker is not None
    waiting = {}
    for queue in sorted(node.queues & snapshot.broker.queues.keys()):
        for task, found in snapshot.broker.queues[queue].by_task.items():
            if task not in known and not task.startswith("celery."):
                waiting[task, queue] = found.count
    return waiting


def _ways(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Return which task is routed to which queue, and by what."""
    ways: dict[tuple[str, str], str] = {}
    for host, state in sorted(snapshot.reachable().items()):
        said = state.application or Application()
        for task in said.tasks:
            ways.setdefault((task.name, task.route.queue), f"the application, loaded on {host},")
    return [(*way, who) for way, who in ways.items() if not way[0].startswith("celery.")]


def _scheduled_for_nobody(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what beat sends, by the nodes' settings, and no node knows.

    While a node is silent, it may be the one that knows. If the application was loaded, its own
    schedule counts: `schedule.py` judges it.
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
        known = any(task in node.registered for node in nodes.values())
        if known or task.startswith("celery."):
            continue
        yield Finding(
            "schedule.unknown_task",
            task,
            f"the schedule, by the settings that {name} was started with, sends {task}, which"
            " no worker knows: the worker that takes it discards it. Correct the name in"
            " beat_schedule, or give the workers the code that has it, then restart them and"
            " beat. If the code is already correct, a restart is enough",
            (
                f"inspect conf: beat_schedule of {name} has it",
                f"inspect registered: missing on {', '.join(sorted(nodes))}",
            ),
        )


def _imports(
    fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe, fix: tuple[Change, ...]
) -> Iterator[Finding]:
    missing = sorted(frozenset(fleet.app.expected_tasks) - now.registered)
    yield from imports.faults(fleet, host, state, now)
    yield from imports.two_names(fleet, host, now)
    wanted = state.imports_wanted
    for module, error in now.errors.items():
        if not error:
            continue
        own = [task for task in missing if _module(task) == module] or missing
        fixed = wanted is not None and wanted.loaded and frozenset(own) <= wanted.registered
        effect = f"{tasks(own)} cannot be registered" if own else "none of its tasks is registered"
        finding = Finding(
            "task.import_fails",
            host.name,
            f"{module or fleet.app.app} fails to import, so {effect}: {error.splitlines()[-1]}",
            (
                *error.splitlines()[-_SHOWN_LINES:],
                *_read(host, state, now, module),
                *_environment(host, state, module, fixed=fixed),
            ),
        )
        yield with_values(finding, fix) if fixed else blocking(finding, host)


def _mute(host: FleetHost, snapshot: Snapshot, now: ImportProbe) -> Iterator[Finding]:
    """Yield workers that do not answer, and would not after a restart.

    **Source:** celery 5.7.0 `worker/consumer/control.py: Control.include_if`; kombu 5.2.4, "What's
    new".
    """
    assert snapshot.broker is not None
    unknown = "without it, what they run, register and consume is not known"
    answering = any(host.node(one) in snapshot.broker.nodes for one in host.settings.workers)
    kombu = _deaf_kombu(now)
    if not now.remote_control:
        yield Finding(
            "worker.no_remote_control",
            host.name,
            f"the workers of {host.name} do not answer, because the application disables remote"
            f" control: set worker_enable_remote_control to True; {unknown}",
            (
                "loaded as a worker loads it, the application has worker_enable_remote_control"
                " = False",
            ),
            blocks=(Block(host.name),),
        )
    elif kombu and not answering:
        clients = [one for one in snapshot.broker.clients or () if one.db == snapshot.broker.db]
        takers = sum(one.takes_messages for one in clients)
        evidence = [
            f"loaded as a worker loads it, the application has kombu {kombu} and a global_keyprefix"
        ]
        if takers:
            take = counted(takers, "client takes", "clients take")
            evidence.append(f"CLIENT LIST: {take} messages in this db")
        evidence.append("they may be healthy; left running, because a restart alone does not help")
        yield Finding(
            "worker.no_remote_control",
            host.name,
            f"the workers of {host.name} do not answer, because kombu {kombu} receives no remote"
            " control if global_keyprefix is set: install kombu 5.2.4 or later, and restart them;"
            f" {unknown}",
            tuple(evidence),
            blocks=(Block(host.name),),
        )


def _deaf_kombu(now: ImportProbe) -> str:
    """Return the version of a kombu that ignores broadcasts under the app's prefix, or ""."""
    said = now.application
    if said is None or not (said.transport_options or {}).get("global_keyprefix"):
        return ""
    version = said.versions.get("kombu", "")
    return version if version in _DEAF_KOMBU else ""


def _module(task: str) -> str:
    return task.rpartition(".")[0]


def discards(
    fleet: Fleet, snapshot: Snapshot, *, repaired: bool
) -> Iterator[tuple[FleetHost, Worker, str, str, int]]:
    """Yield what a worker would discard once started: (host, worker, queue, task, count).

    A worker discards what it does not know, so starting it on a queue with such messages loses
    them. `repaired` asks how it would be with the inventory's environment set and the selected
    messages archived. **Source:** celery 5.7.0 `worker/consumer/consumer.py: on_unknown_task`.
    """
    assert snapshot.broker is not None
    for host, worker, probe in _probed(fleet, snapshot, repaired=repaired):
        if not probe.loaded:
            continue
        node = snapshot.broker.nodes.get(host.node(worker))
        own = node.queues if node else frozenset[str]()
        for queue in snapshot.broker.queues.keys() & set(worker.queues) - own:
            waiting = snapshot.broker.queues[queue]
            for task, found in waiting.by_task.items():
                count = found.count
                if repaired:
                    count -= sum(one.by_task.get(task, 0) for one in waiting.selected)
                if task not in probe.registered and count > 0:
                    yield host, worker, queue, task, count


def _read(host: FleetHost, state: HostState, now: ImportProbe, module: str) -> Iterator[str]:
    """Yield the variables that the failing lines read, if they are as the inventory says."""
    differing = drift(host, state)
    in_file = reading_of(host, state).values
    for name, value in now.variables.get(module, {}).items():
        if name in differing:
            continue
        shown = "not set" if value is None else repr(value)
        origin = f", from {host.settings.env_file}" if name in in_file else ""
        yield f"that line reads {name}, which is {shown}{origin}"


def _environment(host: FleetHost, state: HostState, module: str, *, fixed: bool) -> Iterator[str]:
    """Yield how the environment file differs from the inventory, and whether that matters."""
    values = drift(host, state)
    wanted = state.imports_wanted
    yield from _not_known(host, state)
    yield from _differences(host, state)
    if fixed:
        yield f"{_TRIED} the import works and these tasks are registered"
    elif wanted and values and _tried(state):
        if wanted.failed:
            yield f"{_TRIED} it does not load: {wanted.failed.splitlines()[0]}"
        elif wanted.errors.get(module) or not wanted.loaded:
            yield f"{_TRIED} the import still fails"
        else:
            yield f"{_TRIED} the import works, but these tasks are not registered"
    elif host.settings.env and not values:
        names = ", ".join(sorted(host.settings.env))
        yield f"{host.settings.env_file} has the inventory's values: {names}"


def _not_known(host: FleetHost, state: HostState) -> Iterator[str]:
    """Yield what a worker may read from its environment file, and the probe did not get."""
    environment = reading_of(host, state)
    for place in dict.fromkeys(filter(None, (environment.opaque, *environment.unknown.values()))):
        yield f"{host.settings.env_file}, {place}: the application was loaded without that"


def _differences(host: FleetHost, state: HostState) -> Iterator[str]:
    for name, value in drift(host, state).items():
        now = "not set" if value is None else redact(repr(value))
        expected = host.settings.env[name]
        yield f"{host.settings.env_file}: {name} is {now}, the inventory says {expected!r}"
