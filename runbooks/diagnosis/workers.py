"""Faults of the workers: hosts that do not answer, workers and beat that do not run, answer or consume."""

from collections.abc import Collection, Iterator, Sequence

from runbooks.core.fleet import Fleet, FleetHost, unit_of
from runbooks.core.model import Block, Finding, HostState, Severity, Snapshot, Unreachable
from runbooks.core.wording import span, tasks
from runbooks.steps.workers import busy_solo, changed_since_start, silence_means_nothing


def findings(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What each host's services do against what the inventory expects of them, and who else is at work."""
    yield from strangers(fleet, snapshot)
    yield from _several_beats(snapshot)
    busy = busy_solo(fleet, snapshot)
    for host in fleet.hosts:
        state = snapshot.hosts[host.name]
        yield from of_beat(fleet, host, state)
        if isinstance(state, HostState):
            elsewhere = list(_run_elsewhere(host, state, snapshot))
            yield from _services(host, state, {block.service for one in elsewhere for block in one.blocks})
            yield from _other_units(host, state, snapshot)
            yield from elsewhere
            yield from _nodes(host, state, snapshot, busy)
            yield from _stops_late(fleet, host)


def _several_beats(snapshot: Snapshot) -> Iterator[Finding]:
    """**Source:** Celery's guide "Periodic Tasks": a single scheduler has to run for a schedule at a time."""
    running = [name for name, state in snapshot.reachable().items() if "beat" in _running(state)]
    if len(running) > 1:
        yield Finding(
            "beat.several",
            ", ".join(running),
            f"beat runs on {len(running)} hosts, and each sends every message of the schedule",
            ("no harm where its scheduler takes turns, as RedBeat does; Celery's own does not",),
            severity=Severity.INFO,
        )


def _running(state: HostState) -> set[str]:
    return {name for name, service in state.all_services.items() if service.pid is not None}


def of_beat(fleet: Fleet, host: FleetHost, state: HostState | Unreachable) -> Iterator[Finding]:
    """Beat that has sent nothing for longer than it may, or a host that does not tell."""
    if isinstance(state, Unreachable):
        yield Finding("host.unreachable", host.name, "the host does not answer as it should", (state.why,))
        return
    limit_s = fleet.app.thresholds.beat_silence
    if not host.settings.beat or limit_s is None:
        return
    if state.beat_untold:
        what = "how long beat has been silent cannot be known, so nothing watches it"
        why = f"{state.beat_untold} is kept by Python's dbm.ndbm, which writes it only when beat ends"
        advice = "with dbm.gnu in beat's Python (Debian: python3-gdbm), and a new schedule, it would be known"
        yield Finding("beat.untold", host.name, what, (why, advice), severity=Severity.INFO)
        return
    if state.beat_sent_at is None:
        what, evidence = "beat has never sent anything", "does not exist"
    else:
        silent_s = state.clock_at - state.beat_sent_at
        if silent_s <= limit_s:
            return
        what = f"beat has sent nothing for {span(silent_s)}, more than {span(limit_s)}"
        evidence = f"was last written {span(silent_s)} ago"
    yield Finding("beat.silent", host.name, what, (f"beat's schedule {host.settings.beat_schedule} {evidence}",))


def strangers(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Workers that are none of the inventory's and take its messages, or answer in the name of one that is."""
    assert snapshot.broker is not None
    workers = {host.node(worker): (host, worker) for host in fleet.hosts for worker in host.settings.workers}
    own = {*fleet.all_nodes, *workers}
    leaking = {
        name
        for name, (host, worker) in workers.items()
        if (state := snapshot.reachable().get(host.name)) and (service := state.services.get(worker.name))
        if service.leaked
    }
    for name, node in sorted(snapshot.broker.nodes.items()):
        if node.twins > 1 and name not in leaking:
            yield Finding(
                "worker.twins",
                name,
                f"{node.twins} workers answer as {name}, so one that nobody knows of takes messages, too",
                (
                    "inspect ping: each of them answers; one may be of an older start, or run on another machine",
                    "start each with a name of its own: -n NAME@HOST",
                ),
                blocks=(Block(workers[name][0].name, workers[name][1].name),) if name in workers else (),
            )
        taken = sorted(node.queues & frozenset(fleet.consumed))
        if name in own or not taken:
            continue
        lacking = sorted(frozenset(fleet.app.expected_tasks) - node.registered)
        yield Finding(
            "worker.unknown",
            name,
            f"{name} is no worker of the inventory and consumes {', '.join(taken)}"
            + (f"; messages of {tasks(lacking)} that it takes, it discards" if lacking else ""),
            (
                f"inspect active_queues: {', '.join(sorted(node.queues))}",
                f"inspect registered: lacks {len(lacking)} tasks",
            ),
            severity=Severity.ERROR if lacking else Severity.WARNING,
        )


def silent_nodes(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Nodes that do not answer, where the services of their hosts were not asked."""
    assert snapshot.broker is not None
    nodes = [host.node(worker) for host in fleet.hosts for worker in host.settings.workers]
    silent = [name for name in nodes if name not in snapshot.broker.nodes]
    busy = busy_solo(fleet, snapshot)
    for name in silent:
        if name not in busy:
            yield Finding(
                "worker.not_answering", name, f"the node {name} does not answer ping", (_who_answers(snapshot),)
            )


def _stops_late(fleet: Fleet, host: FleetHost) -> Iterator[Finding]:
    """**Source:** kombu 5.7.0 `transport/redis.py`: a stopping worker holds what it has until it exits."""
    stop_s, limit_s = host.settings.stop_timeout, fleet.app.broker_options.visibility_timeout
    if host.settings.workers and stop_s > limit_s:
        yield Finding(
            "worker.stops_late",
            host.name,
            f"a worker may take {span(stop_s)} to stop, but after {span(limit_s)} Celery delivers what it still holds "
            "again, so that it runs twice",
            ("celery_stop_timeout has to be below visibility_timeout (celery_broker_options)",),
            severity=Severity.WARNING,
        )


def _other_units(host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """**Source:** systemd.service(5), Type=forking: without a PIDFile= the main process is guessed."""
    own_beat = any("beat" in _running(other) for other in snapshot.reachable().values())
    for unit in state.others:
        twice = own_beat and any(_does(runs, None) for runs in unit.runs.values())
        stop = f"systemctl disable --now {unit.name}" if unit.path else f"kill -TERM {' '.join(map(str, unit.runs))}"
        evidence = [f"pid {pid}: {what}" for pid, what in unit.runs.items()]
        if unit.path:
            evidence.append(f"its file is {unit.path}")
        if unit.forking:
            evidence.append(
                "Type=forking, as for celery multi: systemd guesses its main process, so it may restart for ever"
            )
        if twice:
            evidence.append(
                "beat runs as a service of the inventory, too, so each message of the schedule is sent twice"
            )
        evidence.append(f"if the inventory's services are to do this work, end it on {host.name}: sudo {stop}")
        yield Finding(
            "worker.other_unit",
            f"{unit.name} on {host.name}",
            f"{unit.name} runs {', '.join(dict.fromkeys(unit.runs.values()))} beside the inventory's services",
            tuple(evidence),
            severity=Severity.ERROR if twice else Severity.WARNING,
        )


def _run_elsewhere(host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """Services that do not run, and whose work something else does: started as well, they would be there twice."""
    assert snapshot.broker is not None
    nodes = {worker.name: host.node(worker) for worker in host.settings.workers}
    for name, service in state.services.items():
        if service.pid is not None or service.leaked:
            continue
        node = nodes.get(name)
        doing = _units_at_this(host, name, snapshot)
        own = [] if node else [worker.name for worker in host.settings.workers if _has_beat(worker.options)]
        if doing:
            evidence = f"it is at work in {', '.join(doing)}: end it there, then run the same command again"
        elif own:
            evidence = f"{', '.join(own)} is started with -B, so it is a beat, too: take one of the two out"
        elif node in snapshot.broker.nodes:
            evidence = f"inspect ping: {node} answers; end that worker, or give it another name with -n"
        else:
            continue
        yield Finding(
            "service.runs_elsewhere",
            f"{name} on {host.name}",
            f"{name} does not run as a service, but something else does its work; started as well, it would be there "
            "twice",
            (evidence,),
            blocks=(Block(host.name, name),),
        )


def _units_at_this(host: FleetHost, service: str, snapshot: Snapshot) -> list[str]:
    """The units of somebody else's that do a service's work.

    A beat does so wherever it runs. A worker does so on the same host: it has the service's node name, or it takes
    messages from all its queues.
    """
    assert snapshot.broker is not None
    worker = next((worker for worker in host.settings.workers if worker.name == service), None)
    if worker is None:
        return [
            unit.name if name == host.name else f"{unit.name} on {name}"
            for name, state in snapshot.reachable().items()
            for unit in state.others
            if any(_does(runs, None) for runs in unit.runs.values())
        ]
    consuming = [f"worker {node.name}" for node in snapshot.broker.nodes.values() if node.queues >= set(worker.queues)]
    return [
        unit.name
        for unit in snapshot.reachable()[host.name].others
        if any(_does(runs, host.node(worker)) or runs.removesuffix(" -B") in consuming for runs in unit.runs.values())
    ]


def _has_beat(options: Sequence[str]) -> bool:
    """**Source:** celery 5.7.0 `bin/worker.py`: -B, --beat."""
    return "-B" in options or "--beat" in options


def _does(runs: str, node: str | None) -> bool:
    """Whether what a unit runs is the worker of this node, or beat where that is None; %h is the host's own name."""
    kind, *rest = runs.split()
    if node is None:
        return kind == "beat" or "-B" in rest
    named = next((word for word in rest if word != "-B"), "")
    name, _, place = named.partition("@")
    return kind == "worker" and (named == node or (name == node.partition("@")[0] and place.startswith("%")))


def _services(host: FleetHost, state: HostState, elsewhere: Collection[str]) -> Iterator[Finding]:
    for name, service in state.services.items():
        if service.leaked:
            yield Finding(
                "worker.leaked_processes",
                f"{name} on {host.name}",
                f"{len(service.leaked)} processes of {name} outlived an earlier start; they may still take messages",
                tuple(f"pid {process.pid} ({process.name})" for process in service.leaked),
                remedy="end them",
            )
        if service.starting:
            yield Finding(
                "worker.starting",
                f"{name} on {host.name}",
                f"systemd is still starting {name}, and knows no main process of it; it is left as it is",
                (
                    f"systemctl show: {service.answer}, MainPID=0",
                    "with Type=forking systemd waits for a process that never comes, as Celery stays in the foreground",
                    f"where it stays so, on {host.name}: sudo systemctl restart {unit_of(name)}",
                ),
                blocks=(Block(host.name, name),),
            )
        elif service.other_process:
            yield Finding(
                f"{'beat' if name == 'beat' else 'worker'}.other_process",
                f"{name} on {host.name}",
                f"the status command of {name} names {service.other_process}, which is not {name} of this application; "
                "so whether it runs is not known, and it is left alone",
                (
                    "a Celery worker or beat shows by its command line, or by that of a process below it",
                    "a pid file may have outlived its service: remove it, and have the status command check what the "
                    "process is (celery_commands.status)",
                ),
                blocks=(Block(host.name, name),),
            )
        elif service.pid is None and not service.masked and name not in elsewhere:
            who = "systemd" if host.has_systemd else "its status command"
            yield Finding(
                f"{'beat' if name == 'beat' else 'worker'}.not_running",
                f"{name} on {host.name}",
                f"{name} is not running",
                (f"{who} says: {service.answer or 'nothing, with exit code 3'}",),
                remedy="start it",
            )
        elif service.pid is not None and (changed := changed_since_start(host, name, state)):
            yield Finding(
                "worker.outdated",
                f"{name} on {host.name}",
                f"{name} runs with older files than there are now",
                (f"pid {service.pid} started before {', '.join(changed)} was last changed",),
                remedy="restart it",
                severity=Severity.WARNING,
            )


def _nodes(host: FleetHost, state: HostState, snapshot: Snapshot, busy: Collection[str]) -> Iterator[Finding]:
    assert snapshot.broker is not None
    for worker in host.settings.workers:
        name, service = host.node(worker), state.services[worker.name]
        node = snapshot.broker.nodes.get(name)
        if name in busy:
            yield Finding(
                "worker.busy",
                name,
                f"{worker.name} runs and does not answer ping, as a solo worker does while it runs a task; whether it "
                f"works or hangs shows in its log: `inv tail-logs --limit {host.name}`",
                (f"pid {service.pid} is alive; {_who_answers(snapshot)}",),
                severity=Severity.INFO,
            )
        elif node is None and service.pid is not None:
            doubt = silence_means_nothing(snapshot.broker, state, service)
            yield Finding(
                "worker.not_answering",
                name,
                f"{worker.name} runs, but its node does not answer ping"
                + (f"; that proves nothing, so it is left running: {doubt}" if doubt else ""),
                (f"pid {service.pid} is alive; {_who_answers(snapshot)}",),
                remedy=None if doubt else "restart it",
            )
        elif node is not None and (missing := [queue for queue in worker.queues if queue not in node.queues]):
            yield Finding(
                "worker.not_consuming",
                name,
                f"{worker.name} does not consume {', '.join(missing)}",
                (f"inspect active_queues: {', '.join(sorted(node.queues)) or 'none'}",),
                remedy="restart it",
            )


def _who_answers(snapshot: Snapshot) -> str:
    assert snapshot.broker is not None
    names = ", ".join(sorted(snapshot.broker.nodes))
    return f"inspect ping was answered by {names or 'no node at all'}"
