"""Faults of the workers: hosts that do not answer, workers and beat that do not run, answer or consume."""

import re
from collections.abc import Collection, Iterator

from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, HostState, Manager, OtherRunner, Severity, Snapshot, Unreachable
from runbooks.core.settings import Worker
from runbooks.core.wording import span, tasks
from runbooks.diagnosis.silence import busy_solo, not_seen_by_the_broker


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Who else is at work, hosts that do not answer, beats that are silent; what the services do is in `services`."""
    yield from strangers(fleet, snapshot)
    yield from _several_beats(fleet, snapshot)
    yield from _somebody_is_deaf(fleet, snapshot)
    for host in fleet.hosts:
        state = snapshot.hosts[host.name]
        yield from of_beat(fleet, host, state)
        if isinstance(state, HostState):
            yield from _others(fleet, host, state, snapshot)
            yield from _stops_late(fleet, host)


def _several_beats(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """**Source:** Celery's guide "Periodic Tasks": a single scheduler has to run for a schedule at a time."""
    if len(running := _beats(fleet, snapshot)) > 1:
        yield Finding(
            "beat.several",
            ", ".join(dict.fromkeys(host for host, _ in running)),
            f"{len(running)} beats run, and each sends every message of the schedule: {_told(running)}",
            ("no harm where its scheduler takes turns, as RedBeat does; Celery's own does not",),
            severity=Severity.INFO,
        )


def _somebody_is_deaf(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Each worker takes messages over one connection; there are fewer, and their ages do not tell whose is missing."""
    assert snapshot.broker is not None
    nodes = [node for node in snapshot.broker.nodes.values() if node.queues & set(fleet.consumed)]
    connections, answering = snapshot.broker.consumer_ages_s, sum(node.twins for node in nodes)
    if connections is None or answering - len(connections) <= len(not_seen_by_the_broker(fleet, snapshot)):
        return
    yield Finding(
        "worker.deaf",
        "broker",
        f"{answering} workers answer and consume queues, but only {len(connections)} connections take messages; "
        "which of them gets none is not known, so all are left running",
        (
            f"inspect active_queues: {', '.join(sorted(node.name for node in nodes))}",
            "CLIENT LIST: the connections whose last command is BRPOP",
            f"{Command('restart-workers')} restarts them all, and proves of each that it has a connection again",
        ),
        severity=Severity.WARNING,
    )


def _beats(fleet: Fleet, snapshot: Snapshot) -> list[tuple[str, str]]:
    """The services that run and are a beat, each after its host: beat itself, and workers with -B."""
    bundled = {
        (host.name, worker.name) for host in fleet.hosts for worker in host.settings.workers if _has_beat(worker)
    }
    running = [(name, service) for name, state in snapshot.reachable().items() for service in _running(state)]
    return sorted(one for one in running if one[1] == "beat" or one in bundled)


def _told(services: Collection[tuple[str, str]]) -> str:
    return ", ".join(f"{service} on {host}" for host, service in services)


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
                "worker.not_answering", name, f"the node {name} does not answer ping", (who_answers(snapshot),)
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


def _others(fleet: Fleet, host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """**Source:** systemd.service(5), Type=forking: without a PIDFile= the main process is guessed."""
    own_beats = _beats(fleet, snapshot)
    for other in state.others:
        twice = own_beats and any(_does(runs, None) for runs in other.runs.values())
        evidence = [f"pid {pid}: {what}" for pid, what in other.runs.items()]
        if other.path:
            evidence.append(f"its file is {other.path}")
        if other.forking:
            evidence.append(
                "Type=forking, as for celery multi: systemd guesses its main process, so it may restart for ever"
            )
        if twice:
            evidence.append(f"{_told(own_beats)} sends the schedule, too, so each of its messages is sent twice")
        evidence.append(f"if the inventory's services are to do this work, end it on {host.name}: {_end(other)}")
        yield Finding(
            "worker.other_unit",
            f"{other.name} on {host.name}",
            f"{other.name} runs {', '.join(dict.fromkeys(other.runs.values()))} beside the inventory's services",
            tuple(evidence),
            severity=Severity.ERROR if twice else Severity.WARNING,
        )


def _end(other: OtherRunner) -> str:
    """What ends it for good, as far as that is known."""
    match other.manager:
        case Manager.SYSTEMD:
            return f"sudo systemctl disable --now {other.name}"
        case Manager.DOCKER | Manager.PODMAN:
            return f"sudo {other.manager.value} stop {other.name.removeprefix('container ')}"
        case Manager.SUPERVISORD:
            return "sudo supervisorctl stop, with the name that sudo supervisorctl status shows beside its pid"
        case Manager.CONTAINER:
            return "whatever runs that container has to stop it"
    return f"sudo kill -TERM {' '.join(map(str, other.runs))}"


def run_elsewhere(fleet: Fleet, host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """Services that do not run, and whose work something else does: started as well, they would be there twice."""
    assert snapshot.broker is not None
    workers = {worker.name: worker for worker in host.settings.workers}
    for name, service in state.services.items():
        if service.pid is not None or service.leaked or service.other_process or service.starting:
            continue
        worker = workers.get(name)
        doing = _others_at_this(host, worker, snapshot)
        if doing:
            evidence = f"it is at work in {', '.join(doing)}: end it there, then run the same command again"
        elif beats := _own_beats_instead(fleet, host, worker, snapshot):
            evidence = f"{beats}, so there is a beat already: take one of the two out"
        elif worker and host.node(worker) in snapshot.broker.nodes:
            evidence = f"inspect ping: {host.node(worker)} answers; end that worker, or give it another name with -n"
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


def _own_beats_instead(fleet: Fleet, host: FleetHost, worker: Worker | None, snapshot: Snapshot) -> str:
    """Which of the inventory's own services is a beat, where the worker, or beat where that is None, would be another.

    Beat on several hosts is as the inventory has it. Beside a worker with -B it is a mistake, so where neither runs,
    the worker goes first.
    """
    if worker:
        running = _told(_beats(fleet, snapshot)) if _has_beat(worker) else ""
        return f"it is started with -B, and {running} runs" if running else ""
    bundled = [(host.name, one.name) for one in host.settings.workers if _has_beat(one)]
    bundled += [one for one in _beats(fleet, snapshot) if one[1] != "beat" and one not in bundled]
    return f"{_told(bundled)} is started with -B" if bundled else ""


def _others_at_this(host: FleetHost, worker: Worker | None, snapshot: Snapshot) -> list[str]:
    """What does the work of a worker, or of beat where that is None, and is none of the inventory's services.

    A beat does so wherever it runs. A worker does so on the same host: it has the service's node name, or it takes
    messages from all its queues.
    """
    assert snapshot.broker is not None
    doing = []
    if worker is None or _has_beat(worker):
        doing = [
            other.name if name == host.name else f"{other.name} on {name}"
            for name, state in snapshot.reachable().items()
            for other in state.others
            if any(_does(runs, None) for runs in other.runs.values())
        ]
    if worker is None:
        return doing
    consuming = [node for node in snapshot.broker.nodes.values() if node.queues >= set(worker.queues)]
    named = {f"worker {node.name}" for node in consuming}
    pids = {pid for node in consuming for pid in node.pids}
    return doing + [
        other.name
        for other in snapshot.reachable()[host.name].others
        if other.name not in doing
        if any(
            _does(runs, host.node(worker)) or runs.removesuffix(" -B") in named or pid in pids
            for pid, runs in other.runs.items()
        )
    ]


def _has_beat(worker: Worker) -> bool:
    """**Source:** celery 5.7.0 `bin/worker.py`: -B, --beat; of the short flags only -D and -E take no value, too."""
    return any(option == "--beat" or re.match(r"-[DE]*B", option) for option in worker.options)


def _does(runs: str, node: str | None) -> bool:
    """Whether what runs is the worker of this node, or beat where that is None; %h is the host's own name.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: without a name it is `celery@%h`.
    """
    kind, *rest = runs.split()
    if node is None:
        return kind == "beat" or "-B" in rest
    given = next((word for word in rest if word != "-B"), "celery@%h")
    name, _, place = (given if "@" in given else f"celery@{given}").partition("@")
    wanted, _, here = node.partition("@")
    return kind == "worker" and name == wanted and (place.startswith("%") or place == here)


def who_answers(snapshot: Snapshot) -> str:
    """Who answered a ping, for the evidence."""
    assert snapshot.broker is not None
    names = ", ".join(sorted(snapshot.broker.nodes))
    return f"inspect ping was answered by {names or 'no node at all'}"
