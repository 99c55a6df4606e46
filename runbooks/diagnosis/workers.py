"""Faults of hosts and of other workers: hosts that do not answer, and workers of other owners."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from runbooks.core.census import Manager
from runbooks.core.command import Command
from runbooks.core.errors import HostTrouble
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    CLOCK_MARGIN_S,
    Block,
    Finding,
    HostState,
    NodeState,
    OtherRunner,
    ServiceState,
    Severity,
    Snapshot,
    Unreachable,
)
from runbooks.core.nodes import fits, may_be, which_may_be
from runbooks.core.settings import Worker
from runbooks.core.wording import counted, span, tasks, utc
from runbooks.diagnosis import (
    beat,
    census,
    census_beats,
    census_nodes,
    census_processes,
    census_units,
    take_over,
)
from runbooks.diagnosis.ending import end_of
from runbooks.diagnosis.silence import busy_solo, not_seen_by_the_broker, settling

_TROUBLE = {
    HostTrouble.UNREACHABLE: "the host cannot be reached, or its answer is incomplete",
    HostTrouble.KEY_CHANGED: "the host's key has changed, so nothing was sent there",
    HostTrouble.KEY_UNKNOWN: "the host's key is not known, so nothing was sent there",
    HostTrouble.LOGIN_REFUSED: "the host refuses the login of this user",
    HostTrouble.SUDO_REFUSED: "sudo does not allow this user to run commands on the host",
    HostTrouble.OTHER_SHELL: (
        "the host's shell is not /bin/sh, or runs as another user, so no script was sent"
    ),
    HostTrouble.NO_ROOM: (
        "the temporary folders of the host cannot be written, so the host was not checked"
    ),
    HostTrouble.LACKS_TOOLS: "the host lacks a program that every look needs",
}


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find other workers, hosts that do not answer, and silent beats.

    `services` judges the inventory's own services.
    """
    yield from none_expected(fleet)
    yield from not_there(fleet, snapshot)
    rows = census.table(fleet, snapshot)
    beats = census_beats.running(fleet, snapshot, rows)
    yield from census_units.faults(fleet, snapshot, rows)
    yield from census_processes.faults(fleet, snapshot, census_beats.without(rows, beats))
    yield from census_nodes.faults(fleet, snapshot, rows)
    yield from strangers(fleet, snapshot, rows)
    yield from census_beats.several(fleet, snapshot, beats)
    yield from census_beats.none(fleet, snapshot, rows, beats)
    yield from _one_is_deaf(fleet, snapshot)
    reported = _reported_already(rows, beats)
    for host in fleet.hosts:
        state = snapshot.hosts[host.name]
        yield from of_beat(fleet, host, state, beats)
        if isinstance(state, HostState):
            yield from _folders(fleet, host, state)
            yield from _others(fleet, host, state, snapshot, reported)
            yield from _stops_late(fleet, host)
            yield from _slow_shell(host, state)
            yield from _clock(snapshot, host, state)


def none_expected(fleet: Fleet) -> Iterator[Finding]:
    """Find an inventory that expects no worker, so that nothing can be judged."""
    if not (fleet.all_workers or fleet.app.nodes or fleet.app.queues or fleet.found):
        yield Finding(
            "inventory.no_workers",
            fleet.app.app,
            "the inventory has no workers, so it is not known whether the application is healthy",
            (
                "name each host's workers and their queues in celery_workers, and workers that no"
                " host of the inventory runs in celery_nodes and celery_queues: docs/inventory.md",
            ),
        )


def not_there(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find patterns of `celery_nodes` that no answering node matches.

    Without an inventory: find that no node answers, unless a worker is known, which has a finding
    of its own.
    """
    assert snapshot.broker is not None
    if fleet.found is not None:
        if not snapshot.broker.nodes and not fleet.all_workers:
            queues = f"queues in this db: {', '.join(fleet.consumed) or 'none'}"
            yield Finding(
                "worker.none_fits", "*", "no node answers", (who_answers(snapshot), queues)
            )
        return
    for pattern in fleet.app.nodes:
        if not any(fits(node.name, pattern) for node in snapshot.broker.nodes.values()):
            yield Finding(
                "worker.none_fits",
                pattern,
                f"no node that answers matches {pattern}",
                (who_answers(snapshot), "the inventory expects it"),
            )


def _one_is_deaf(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find that fewer connections take messages than workers answer: each worker needs one.

    The ages of the connections do not show whose is missing.
    """
    assert snapshot.broker is not None
    connections = snapshot.broker.consumer_ages_s
    if connections is None:
        return
    nodes = [node for node in snapshot.broker.nodes.values() if node.queues & set(fleet.consumed)]
    answering = sum(node.twins for node in nodes)
    if answering - len(connections) <= len(not_seen_by_the_broker(fleet, snapshot)):
        return
    yield Finding(
        "worker.deaf",
        "broker",
        f"{counted(answering, 'worker answers and consumes', 'workers answer and consume')} queues,"
        f" but only {counted(len(connections), 'connection takes', 'connections take')} messages;"
        " it is not known which of them gets none, so none is restarted",
        (
            f"inspect active_queues: {', '.join(sorted(node.name for node in nodes))}",
            "CLIENT LIST: the connections whose last command is BRPOP",
            f"{Command('restart-workers')} restarts them all; then diagnose again",
        ),
        severity=Severity.WARNING,
    )


def _slow_shell(host: FleetHost, state: HostState) -> Iterator[Finding]:
    if state.slow_shell:
        yield Finding(
            "host.slow_shell",
            host.name,
            f"the shell on {host.name} starts slowly, and each command of this tool waits for it",
            (
                f"it started {state.slow_shell}",
                "sudo waits for a name server if the host's own name is not in its /etc/hosts",
            ),
            severity=Severity.INFO,
        )


def _clock(snapshot: Snapshot, host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Find a clock that differs from the broker's, or this machine's, by more than asking took."""
    assert snapshot.broker is not None
    if state.clock_ahead_s is None:
        return
    least_s, most_s = (ahead_s + snapshot.broker.clock_ahead_s for ahead_s in state.clock_ahead_s)
    off_s = max(least_s, 0.0) or min(most_s, 0.0)
    if abs(off_s) > CLOCK_MARGIN_S:
        compared = "this machine" if snapshot.broker.unseen else "the broker"
        yield Finding(
            "host.clock",
            host.name,
            f"the clock of {host.name} is {span(off_s)} {'ahead of' if off_s > 0 else 'behind'}"
            f" {compared}'s",
            (
                f"date there: {utc(state.clock_at)}",
                "its workers read ETA and expiry by that clock, and tasks sent there with a"
                " countdown are due by it",
                f"timedatectl on {host.name} shows whether it is synchronised",
            ),
            severity=Severity.WARNING,
        )


def _beats(fleet: Fleet, snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return the running services that are a beat (host, service): beat, and workers with -B."""
    beats = {(host.name, host.beat) for host in fleet.hosts}
    for host in fleet.hosts:
        for worker in host.settings.workers:
            if worker.with_beat:
                beats.add((host.name, worker.known_as))
    running = []
    for name, state in snapshot.reachable().items():
        for service in _running(state):
            if service == "beat" or (name, service) in beats:
                running.append((name, service))
    return sorted(running)


def _named(services: Collection[tuple[str, str]]) -> str:
    return ", ".join(f"{service} on {host}" for host, service in services)


def _running(state: HostState) -> set[str]:
    return {name for name, service in state.all_services.items() if service.pid is not None}


def of_beat(
    fleet: Fleet,
    host: FleetHost,
    state: HostState | Unreachable,
    beats: Sequence[census_beats.Beat] = (),
) -> Iterator[Finding]:
    """Find a beat that is silent, or a host that cannot be checked; `beats` are known to run."""
    if isinstance(state, Unreachable):
        yield Finding(
            f"host.{state.trouble.value}", host.name, _TROUBLE[state.trouble], (state.why,)
        )
        return
    yield from beat.faults(fleet, host, state, beats)


def strangers(
    fleet: Fleet, snapshot: Snapshot, rows: Sequence[census.Row] = ()
) -> Iterator[Finding]:
    """Find workers outside the inventory that take its messages, or answer in a worker's name."""
    assert snapshot.broker is not None
    yield from census_nodes.twins(fleet, snapshot, rows)
    own = {*fleet.all_nodes, *fleet.nodes_by_pattern(snapshot.broker.nodes)}
    for host in fleet.hosts:
        own |= {host.node(worker) for worker in host.settings.workers}
    own |= {row.node for row in rows if row.expected}
    for name, node in sorted(snapshot.broker.nodes.items()):
        taken = sorted(node.queues & frozenset(fleet.consumed))
        if name in own or not taken:
            continue
        lacking = sorted(frozenset(fleet.app.expected_tasks) - node.registered)
        summary = f"{name} is not a worker of the inventory and consumes {', '.join(taken)}"
        evidence = [f"inspect active_queues: {', '.join(sorted(node.queues))}"]
        if lacking:
            summary += f"; it discards messages of {tasks(lacking)}"
            evidence.append(f"inspect registered: lacks {', '.join(lacking)}")
        for row in rows:
            if row.node == node.name and row.process and not row.process.leftover:
                evidence.append(f"seen: {census.which(row)}")
        yield Finding(
            "worker.unknown",
            name,
            summary,
            tuple(evidence),
            severity=Severity.ERROR if lacking else Severity.WARNING,
        )


def silent_nodes(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find nodes that do not answer, without a look at the services of their hosts."""
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes
    busy = busy_solo(fleet, snapshot)
    back_soon = settling(fleet, snapshot)
    workers: dict[str, Worker] = {}
    for host in fleet.hosts:
        workers |= {host.node(worker): worker for worker in host.settings.workers}
    for name, worker in workers.items():
        if name in nodes or name in busy:
            continue
        summary = f"the node {name} does not answer ping"
        perhaps = ", ".join(which_may_be(worker, nodes, fleet.all_nodes))
        if perhaps:
            summary = f"no node is known to be {name}, though {perhaps} may be"
        yield Finding(
            "worker.not_answering",
            name,
            summary,
            (who_answers(snapshot),),
            severity=Severity.INFO if name in back_soon else Severity.ERROR,
        )


def _folders(fleet: Fleet, host: FleetHost, state: HostState) -> Iterator[Finding]:
    if state.full_folder:
        yield Finding(
            "host.no_room",
            host.name,
            f"{state.full_folder} on {host.name} cannot be written: programs that keep files there"
            " fail",
            (
                f"check that it exists and is not full: df -h {state.full_folder}",
                "this look used /dev/shm instead",
            ),
        )
    if state.lacks_directory:
        yield Finding(
            "host.no_directory",
            host.name,
            f"{host.settings.directory} {state.lacks_directory}, so the application cannot be"
            f" started on {host.name}, and nothing is changed there",
            (
                fleet.worded(
                    "celery_directory of the inventory names it",
                    "it is the working directory of the processes there",
                ),
            ),
            blocks=(Block(host.name),),
        )


def _stops_late(fleet: Fleet, host: FleetHost) -> Iterator[Finding]:
    """Find a stop that may take too long; without an inventory its limit is not known.

    **Source:** kombu 5.7.0 `transport/redis.py`: a stopping worker holds its messages until
    it exits.
    """
    stop_s, limit_s = host.settings.stop_timeout, fleet.app.broker_options.visibility_timeout
    if host.settings.workers and stop_s > limit_s and not fleet.found:
        yield Finding(
            "worker.stops_late",
            host.name,
            f"a worker may take {span(stop_s)} to stop, but after {span(limit_s)} Celery delivers"
            " its remaining messages again, so that they run twice",
            ("make celery_stop_timeout shorter than visibility_timeout (celery_broker_options)",),
            severity=Severity.WARNING,
        )


def _reported_already(
    rows: Iterable[census.Row], beats: Sequence[census_beats.Beat]
) -> frozenset[tuple[str, int]]:
    """Return the host and pid of each process that has a finding of its own."""
    reported = {(beat.host, beat.pid) for beat in beats} if len(beats) > 1 else set()
    for row in rows:
        one = row.process
        if one and (one.stopped or one.leftover or row.twins or row.at_ours is False):
            reported.add(row.identity)
    return frozenset(reported)


def _others(
    fleet: Fleet,
    host: FleetHost,
    state: HostState,
    snapshot: Snapshot,
    reported: Collection[tuple[str, int]],
) -> Iterator[Finding]:
    """Find other workers, except those `reported` already or that run instead of a service."""
    instead = []
    for name, service in state.services.items():
        if _is_down(service) or service.why_unknown:
            for worker in host.workers_of(name) or (None,):
                instead += _others_at_this(host, worker, snapshot)
    services = fleet.worded("the inventory's services", "those that were found first")
    for other in state.others:
        processes = {(host.name, pid) for pid in other.runs}
        if (host.name, other) in instead or processes <= set(reported):
            continue
        end = end_of(other.manager, other.name, other.runs)
        yield Finding(
            "worker.other_unit",
            f"{other.name} on {host.name}",
            f"{other.name} runs {', '.join(dict.fromkeys(other.runs.values()))} in addition to"
            f" {services}",
            (
                *_who(other),
                f"if {services} should do this work, end it on {host.name}: {end}",
                *take_over.offer(fleet, snapshot, host.name, other.name),
            ),
            severity=Severity.WARNING,
        )


def _who(other: OtherRunner) -> Iterator[str]:
    """Describe another runner, for the evidence.

    **Source:** systemd.service(5), Type=forking: without a PIDFile= the main process is guessed.
    """
    yield from (f"pid {pid}: {what}" for pid, what in other.runs.items())
    if other.path:
        yield f"its file is {other.path}"
    if other.forking:
        yield (
            "Type=forking, as for celery multi: systemd guesses its main process, so it may restart"
            " forever"
        )
    if other.manager is Manager.USERS_SYSTEMD:
        yield (
            "units of a user's own systemd (systemctl --user) are not checked; its process was"
            " found"
        )


def run_elsewhere(
    fleet: Fleet, host: FleetHost, state: HostState, snapshot: Snapshot
) -> Iterator[Finding]:
    """Find services that are down while something else does their work: a start would double it."""
    for name, service in state.services.items():
        if not _is_down(service):
            continue
        for worker in host.workers_of(name) or (None,):
            evidence = _instead(fleet, host, worker, snapshot)
            if evidence:
                yield Finding(
                    "service.runs_elsewhere",
                    f"{name} on {host.name}",
                    f"{name} does not run as a service, but something else does its work; if"
                    " started too, it would run twice",
                    tuple(evidence),
                    blocks=(Block(host.name, name),),
                )


def _instead(fleet: Fleet, host: FleetHost, worker: Worker | None, snapshot: Snapshot) -> list[str]:
    """Describe what does the work of a worker, or of beat if None; empty if nothing does."""
    assert snapshot.broker is not None
    doing = _others_at_this(host, worker, snapshot)
    if doing:
        names = []
        for place, one in doing:
            names.append(one.name if place == host.name else f"{one.name} on {place}")
        evidence = [f"{', '.join(names)} runs it: end that, then run the same command again"]
        for place, one in doing:
            evidence += _who(one)
            evidence.append(f"end it on {place}: {end_of(one.manager, one.name, one.runs)}")
            evidence += take_over.offer(fleet, snapshot, place, one.name)
        return evidence
    beats = _own_beats_instead(fleet, host, worker, snapshot)
    if beats:
        return [f"{beats}, so there is a beat already: remove one of the two"]
    if worker and host.node(worker) in snapshot.broker.nodes:
        return [f"inspect ping: {host.node(worker)} answers; {_another(host)}"]
    return []


def _another(host: FleetHost) -> str:
    if host.settings.service_manager == "none":
        return (
            f"no process on {host.name} is known to be this worker: name workers whose hosts are"
            " not reached in celery_nodes"
        )
    return "end that worker, or give it another name with -n"


def _is_down(service: ServiceState) -> bool:
    unclear = service.other_process or service.starting or service.why_unknown
    return not (service.pid is not None or service.leaked or service.alias_of or unclear)


def _own_beats_instead(
    fleet: Fleet, host: FleetHost, worker: Worker | None, snapshot: Snapshot
) -> str:
    """Name the inventory's own service that is already a beat, if the worker would be another.

    `worker` is None for beat. Beat on several hosts is intended by the inventory. In addition to a
    worker with -B it is a mistake; if neither runs, the worker goes first.
    """
    if worker:
        running = _named(_beats(fleet, snapshot)) if worker.with_beat else ""
        return f"it is started with -B, and {running} runs" if running else ""
    beats = {"beat", *(one.beat for one in fleet.hosts)}
    bundled = [(host.name, one.known_as) for one in host.settings.workers if one.with_beat]
    for one in _beats(fleet, snapshot):
        if one[1] not in beats and one not in bundled:
            bundled.append(one)
    return f"{_named(bundled)} is started with -B" if bundled else ""


def _others_at_this(
    host: FleetHost, worker: Worker | None, snapshot: Snapshot
) -> list[tuple[str, OtherRunner]]:
    """Return what does the work of a worker, or of beat if None, with its host; no own services.

    A beat does so on any host. A worker does so on the same host: it has the service's node name,
    or it takes messages from all its queues.
    """
    assert snapshot.broker is not None
    doing = []
    if worker is None or worker.with_beat:
        for name, state in snapshot.reachable().items():
            for other in state.others:
                if any(_does(runs, None) for runs in other.runs.values()):
                    doing.append((name, other))
    if worker is None:
        return doing
    consuming = [
        node for node in snapshot.broker.nodes.values() if node.queues >= set(worker.queues)
    ]
    node_name = worker.node or host.node(worker)
    for other in snapshot.reachable()[host.name].others:
        its = _is_of_node(other, node_name) or _is_one_of(other, consuming)
        if its and (host.name, other) not in doing:
            doing.append((host.name, other))
    return doing


def _is_of_node(other: OtherRunner, node: str) -> bool:
    return any(_does(runs, node) for runs in other.runs.values())


def _is_one_of(other: OtherRunner, nodes: Iterable[NodeState]) -> bool:
    """Whether one of these nodes is a process of the other runner, by its name or its pid."""
    for node in nodes:
        for pid, runs in other.runs.items():
            if runs.removesuffix(" -B") == f"worker {node.name}" or pid in node.pids:
                return True
    return False


def _does(runs: str, node: str | None) -> bool:
    """Whether a process is the worker of this node, which may be a pattern, or beat if None.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: without a name it is
    `celery@%h`.
    """
    kind, *rest = runs.split()
    if node is None:
        return kind == "beat" or "-B" in rest
    given = next((word for word in rest if word != "-B"), "celery@%h")
    return kind == "worker" and may_be(given, node)


def who_answers(snapshot: Snapshot) -> str:
    """Return who answered a ping, for the evidence."""
    assert snapshot.broker is not None
    names = ", ".join(sorted(node.name for node in snapshot.broker.nodes.values()))
    return f"inspect ping was answered by {names or 'no node'}"
