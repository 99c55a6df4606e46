"""Faults of the workers: hosts that do not answer, workers and beat that do not run, answer or
consume.
"""

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


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Who else is at work, hosts that do not answer, beats that are silent; what the services do is
    in `services`.
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
    yield from _somebody_is_deaf(fleet, snapshot)
    for host in fleet.hosts:
        state = snapshot.hosts[host.name]
        yield from of_beat(fleet, host, state, beats)
        if isinstance(state, HostState):
            yield from _folders(fleet, host, state)
            yield from _others(fleet, host, state, snapshot, _told_already(rows, beats))
            yield from _stops_late(fleet, host)
            yield from _slow_shell(host, state)
            yield from _clock(snapshot, host, state)


def none_expected(fleet: Fleet) -> Iterator[Finding]:
    """An inventory that expects no worker: that nothing else is found does not say that all is
    well.
    """
    if not (fleet.all_workers or fleet.app.nodes or fleet.app.queues or fleet.found):
        yield Finding(
            "inventory.no_workers",
            fleet.app.app,
            "the inventory has no workers, so whether the application is well is not known",
            (
                (
                    "celery_workers names each host's workers and their queues, celery_nodes and"
                    " celery_queues those that no host of the inventory runs: docs/inventory.md"
                ),
            ),
        )


def not_there(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Patterns of `celery_nodes` that no node which answers fits.

    Without an inventory, that none answers, where no worker is known: of one that is, its own
    finding says so.
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
                f"no node that answers fits {pattern}",
                (who_answers(snapshot), "the inventory has it"),
            )


def _somebody_is_deaf(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Each worker takes messages over one connection; there are fewer, and their ages do not tell
    whose is missing.
    """
    assert snapshot.broker is not None
    nodes = [node for node in snapshot.broker.nodes.values() if node.queues & set(fleet.consumed)]
    connections, answering = snapshot.broker.consumer_ages_s, sum(node.twins for node in nodes)
    if connections is None or answering - len(connections) <= len(
        not_seen_by_the_broker(fleet, snapshot)
    ):
        return
    yield Finding(
        "worker.deaf",
        "broker",
        f"{counted(answering, 'worker answers and consumes', 'workers answer and consume')} queues,"
        f" but only {counted(len(connections), 'connection takes', 'connections take')} messages;"
        " which of them gets none is not known, so all are left running",
        (
            f"inspect active_queues: {', '.join(sorted(node.name for node in nodes))}",
            "CLIENT LIST: the connections whose last command is BRPOP",
            (
                f"{Command('restart-workers')} restarts them all, and proves of each that it has a"
                " connection again"
            ),
        ),
        severity=Severity.WARNING,
    )


def _slow_shell(host: FleetHost, state: HostState) -> Iterator[Finding]:
    if state.slow_shell:
        yield Finding(
            "host.slow_shell",
            host.name,
            f"the shell on {host.name} takes long to begin, so every look and step there does",
            (
                f"it began {state.slow_shell}",
                "sudo waits for a name server where the host's own name is not in its /etc/hosts",
            ),
            severity=Severity.INFO,
        )


def _clock(snapshot: Snapshot, host: FleetHost, state: HostState) -> Iterator[Finding]:
    """A host whose clock differs from the broker's, or this machine's, by more than it took to ask."""
    assert snapshot.broker is not None
    if state.clock_ahead_s is None:
        return
    least_s, most_s = (ahead_s + snapshot.broker.clock_ahead_s for ahead_s in state.clock_ahead_s)
    off_s = max(least_s, 0.0) or min(most_s, 0.0)
    if abs(off_s) > CLOCK_MARGIN_S:
        yield Finding(
            "host.clock",
            host.name,
            f"the clock of {host.name} is {span(off_s)} {'ahead of' if off_s > 0 else 'behind'} "
            f"{'this machine' if snapshot.broker.unseen else 'the broker'}'s",
            (
                f"date there: {utc(state.clock_at)}",
                (
                    "its workers take ETA and expiry by that clock, and what is sent there with a"
                    " countdown is due by it"
                ),
                f"timedatectl on {host.name} shows whether it is synchronised",
            ),
            severity=Severity.WARNING,
        )


def _beats(fleet: Fleet, snapshot: Snapshot) -> list[tuple[str, str]]:
    """The services that run and are a beat, each after its host: beat itself, and workers with -B."""
    bundled = {
        (host.name, worker.known_as)
        for host in fleet.hosts
        for worker in host.settings.workers
        if worker.with_beat
    }
    beats = {(host.name, host.beat) for host in fleet.hosts}
    running = [
        (name, service)
        for name, state in snapshot.reachable().items()
        for service in _running(state)
    ]
    return sorted(one for one in running if one[1] == "beat" or one in beats | bundled)


def _told(services: Collection[tuple[str, str]]) -> str:
    return ", ".join(f"{service} on {host}" for host, service in services)


def _running(state: HostState) -> set[str]:
    return {name for name, service in state.all_services.items() if service.pid is not None}


def of_beat(
    fleet: Fleet,
    host: FleetHost,
    state: HostState | Unreachable,
    beats: Sequence[census_beats.Beat] = (),
) -> Iterator[Finding]:
    """Beat that has sent nothing for longer than it may, or a host that does not tell; `beats` are
    seen to run.
    """
    if isinstance(state, Unreachable):
        yield Finding(
            f"host.{state.trouble.value}", host.name, _TROUBLE[state.trouble], (state.why,)
        )
        return
    yield from beat.faults(fleet, host, state, beats)


_TROUBLE = {
    HostTrouble.UNREACHABLE: "the host does not answer as it should",
    HostTrouble.KEY_CHANGED: "another host key was shown than is known, so nothing was sent there",
    HostTrouble.KEY_UNKNOWN: "a host key was shown that is not known, so nothing was sent there",
    HostTrouble.LOGIN_REFUSED: "this user is not let in",
    HostTrouble.SUDO_REFUSED: "sudo does not let this user run commands on the host",
    HostTrouble.OTHER_SHELL: (
        "the host's shell is not /bin/sh, or runs as somebody else, so it was sent no script"
    ),
    HostTrouble.NO_ROOM: (
        "nothing can be written in the temporary folders of the host, so it was asked nothing"
    ),
    HostTrouble.LACKS_TOOLS: "the host lacks a program that every look needs",
}


def strangers(
    fleet: Fleet, snapshot: Snapshot, rows: Sequence[census.Row] = ()
) -> Iterator[Finding]:
    """Workers that are none of the inventory's and take its messages, or answer in the name of one
    that is.
    """
    assert snapshot.broker is not None
    yield from census_nodes.twins(fleet, snapshot, rows)
    workers = {
        host.node(worker): (host, worker)
        for host in fleet.hosts
        for worker in host.settings.workers
    }
    own = {*fleet.all_nodes, *workers, *fleet.nodes_by_pattern(snapshot.broker.nodes)}
    own |= {row.node for row in rows if row.expected}
    for name, node in sorted(snapshot.broker.nodes.items()):
        taken = sorted(node.queues & frozenset(fleet.consumed))
        if name in own or not taken:
            continue
        lacking = sorted(frozenset(fleet.app.expected_tasks) - node.registered)
        its = [
            row
            for row in rows
            if row.node == node.name and row.process and not row.process.leftover
        ]
        yield Finding(
            "worker.unknown",
            name,
            f"{name} is no worker of the inventory and consumes {', '.join(taken)}"
            + (f"; messages of {tasks(lacking)} that it takes, it discards" if lacking else ""),
            (
                f"inspect active_queues: {', '.join(sorted(node.queues))}",
                *((f"inspect registered: lacks {', '.join(lacking)}",) if lacking else ()),
                *(f"seen: {census.which(row)}" for row in its),
            ),
            severity=Severity.ERROR if lacking else Severity.WARNING,
        )


def silent_nodes(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Nodes that do not answer, where the services of their hosts were not asked."""
    assert snapshot.broker is not None
    workers = {
        host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers
    }
    busy, nodes, back_soon = (
        busy_solo(fleet, snapshot),
        snapshot.broker.nodes,
        settling(fleet, snapshot),
    )
    for name, worker in workers.items():
        if name in nodes or name in busy:
            continue
        perhaps = ", ".join(which_may_be(worker, nodes, fleet.all_nodes))
        what = (
            f"no node is known to be {name}, though {perhaps} may be"
            if perhaps
            else f"the node {name} does not answer ping"
        )
        severity = Severity.INFO if name in back_soon else Severity.ERROR
        yield Finding(
            "worker.not_answering", name, what, (who_answers(snapshot),), severity=severity
        )


def _folders(fleet: Fleet, host: FleetHost, state: HostState) -> Iterator[Finding]:
    if state.full_folder:
        yield Finding(
            "host.no_room",
            host.name,
            f"nothing can be written in {state.full_folder} on {host.name}: what keeps files there"
            " fails",
            (
                f"is it there, and not full? df -h {state.full_folder}",
                "what was asked was kept in /dev/shm meanwhile",
            ),
        )
    if state.lacks_directory:
        yield Finding(
            "host.no_directory",
            host.name,
            f"{host.settings.directory} {state.lacks_directory}, so nothing of the application can"
            f" be started on {host.name}, and nothing is changed there",
            (
                fleet.worded(
                    "celery_directory of the inventory names it", "what runs there works in it"
                ),
            ),
            blocks=(Block(host.name),),
        )


def _stops_late(fleet: Fleet, host: FleetHost) -> Iterator[Finding]:
    """Not without an inventory, as nothing says then how long a stop may take.

    **Source:** kombu 5.7.0 `transport/redis.py`: a stopping worker holds what it has until it
    exits.
    """
    stop_s, limit_s = host.settings.stop_timeout, fleet.app.broker_options.visibility_timeout
    if host.settings.workers and stop_s > limit_s and not fleet.found:
        yield Finding(
            "worker.stops_late",
            host.name,
            f"a worker may take {span(stop_s)} to stop, but after {span(limit_s)} Celery delivers"
            " what it still holds again, so that it runs twice",
            ("celery_stop_timeout has to be below visibility_timeout (celery_broker_options)",),
            severity=Severity.WARNING,
        )


def _told_already(
    rows: Iterable[census.Row], beats: Sequence[census_beats.Beat]
) -> frozenset[tuple[str, int]]:
    """The host and pid of each process that is a fault of its own, whoever runs it."""
    told = {(beat.host, beat.pid) for beat in beats} if len(beats) > 1 else set()
    for row in rows:
        one = row.process
        if one and (one.stopped or one.leftover or row.twins or row.at_ours is False):
            told.add(row.identity)
    return frozenset(told)


def _others(
    fleet: Fleet,
    host: FleetHost,
    state: HostState,
    snapshot: Snapshot,
    told: Collection[tuple[str, int]],
) -> Iterator[Finding]:
    """Who else is at work, but for what is `told` already, and what keeps a service of the
    inventory from starting.
    """
    instead = [
        one
        for name, service in state.services.items()
        if _is_down(service) or service.untold
        for worker in host.workers_of(name) or (None,)
        for one in _others_at_this(host, worker, snapshot)
    ]
    services = fleet.worded("the inventory's services", "those that were found first")
    for other in state.others:
        if (host.name, other) in instead or {(host.name, pid) for pid in other.runs} <= set(told):
            continue
        yield Finding(
            "worker.other_unit",
            f"{other.name} on {host.name}",
            f"{other.name} runs {', '.join(dict.fromkeys(other.runs.values()))} beside {services}",
            (
                *_who(other),
                (
                    f"if {services} are to do this work, end it on "
                    f"{host.name}: {end_of(other.manager, other.name, other.runs)}"
                ),
                *take_over.offer(fleet, snapshot, host.name, other.name),
            ),
            severity=Severity.WARNING,
        )


def _who(other: OtherRunner) -> Iterator[str]:
    """**Source:** systemd.service(5), Type=forking: without a PIDFile= the main process is guessed."""
    yield from (f"pid {pid}: {what}" for pid, what in other.runs.items())
    if other.path:
        yield f"its file is {other.path}"
    if other.forking:
        yield (
            "Type=forking, as for celery multi: systemd guesses its main process, so it may restart"
            " for ever"
        )
    if other.manager is Manager.USERS_SYSTEMD:
        yield "units of a user's own systemd (systemctl --user) are not looked at; its process told"


def run_elsewhere(
    fleet: Fleet, host: FleetHost, state: HostState, snapshot: Snapshot
) -> Iterator[Finding]:
    """Services that do not run, and whose work something else does: started as well, they would be
    there twice.
    """
    assert snapshot.broker is not None
    down = [
        (name, worker)
        for name, service in state.services.items()
        if _is_down(service)
        for worker in host.workers_of(name) or (None,)
    ]
    for name, worker in down:
        if doing := _others_at_this(host, worker, snapshot):
            names = [
                one.name if place == host.name else f"{one.name} on {place}" for place, one in doing
            ]
            evidence = [
                f"it is at work in {', '.join(names)}: end it there, then run the same command"
                " again"
            ]
            for place, one in doing:
                evidence += [
                    *_who(one),
                    f"end it on {place}: {end_of(one.manager, one.name, one.runs)}",
                ]
                evidence += take_over.offer(fleet, snapshot, place, one.name)
        elif beats := _own_beats_instead(fleet, host, worker, snapshot):
            evidence = [f"{beats}, so there is a beat already: take one of the two out"]
        elif worker and host.node(worker) in snapshot.broker.nodes:
            evidence = [f"inspect ping: {host.node(worker)} answers; {_another(host)}"]
        else:
            continue
        yield Finding(
            "service.runs_elsewhere",
            f"{name} on {host.name}",
            f"{name} does not run as a service, but something else does its work; started as well,"
            " it would be there twice",
            tuple(evidence),
            blocks=(Block(host.name, name),),
        )


def _another(host: FleetHost) -> str:
    if host.settings.service_manager == "none":
        return (
            f"no process on {host.name} is seen to be it: name workers whose hosts are not reached"
            " in celery_nodes"
        )
    return "end that worker, or give it another name with -n"


def _is_down(service: ServiceState) -> bool:
    unclear = service.other_process or service.starting or service.untold
    return not (service.pid is not None or service.leaked or service.alias_of or unclear)


def _own_beats_instead(
    fleet: Fleet, host: FleetHost, worker: Worker | None, snapshot: Snapshot
) -> str:
    """Which of the inventory's own services is a beat, where the worker, or beat where that is
    None, would be another.

    Beat on several hosts is as the inventory has it. Beside a worker with -B it is a mistake, so
    where neither runs, the worker goes first.
    """
    if worker:
        running = _told(_beats(fleet, snapshot)) if worker.with_beat else ""
        return f"it is started with -B, and {running} runs" if running else ""
    beats = {"beat", *(one.beat for one in fleet.hosts)}
    bundled = [(host.name, one.known_as) for one in host.settings.workers if one.with_beat]
    bundled += [
        one for one in _beats(fleet, snapshot) if one[1] not in beats and one not in bundled
    ]
    return f"{_told(bundled)} is started with -B" if bundled else ""


def _others_at_this(
    host: FleetHost, worker: Worker | None, snapshot: Snapshot
) -> list[tuple[str, OtherRunner]]:
    """What does the work of a worker, or of beat where that is None, on which host; none of the
    inventory's services.

    A beat does so wherever it runs. A worker does so on the same host: it has the service's node
    name, or it takes messages from all its queues.
    """
    assert snapshot.broker is not None
    doing = []
    if worker is None or worker.with_beat:
        doing = [
            (name, other)
            for name, state in snapshot.reachable().items()
            for other in state.others
            if any(_does(runs, None) for runs in other.runs.values())
        ]
    if worker is None:
        return doing
    consuming = [
        node for node in snapshot.broker.nodes.values() if node.queues >= set(worker.queues)
    ]
    named = {f"worker {node.name}" for node in consuming}
    pids = {pid for node in consuming for pid in node.pids}
    return doing + [
        (host.name, other)
        for other in snapshot.reachable()[host.name].others
        if (host.name, other) not in doing
        if any(
            _does(runs, worker.node or host.node(worker))
            or runs.removesuffix(" -B") in named
            or pid in pids
            for pid, runs in other.runs.items()
        )
    ]


def _does(runs: str, node: str | None) -> bool:
    """Whether what runs is the worker of this node, which may be a pattern, or beat where that is
    None.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: without a name it is
    `celery@%h`.
    """
    kind, *rest = runs.split()
    if node is None:
        return kind == "beat" or "-B" in rest
    given = next((word for word in rest if word != "-B"), "celery@%h")
    return kind == "worker" and may_be(given, node)


def who_answers(snapshot: Snapshot) -> str:
    """Who answered a ping, for the evidence."""
    assert snapshot.broker is not None
    names = ", ".join(sorted(node.name for node in snapshot.broker.nodes.values()))
    return f"inspect ping was answered by {names or 'no node at all'}"
