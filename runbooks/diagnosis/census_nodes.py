"""Workers that are not where, or not who, the inventory expects: another broker, another name, or a
name twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, HostState, NodeState, Severity, Snapshot
from runbooks.core.nodes import fits
from runbooks.core.settings import Worker
from runbooks.core.wording import counted, span
from runbooks.diagnosis.census import Row, SeenBy, which
from runbooks.diagnosis.ending import ended_by
from runbooks.diagnosis.starts import given_in
from runbooks.hosts.celery_argv import place_of


def faults(fleet: Fleet, snapshot: Snapshot, rows: Sequence[Row]) -> Iterator[Finding]:
    """Of the workers of the application that were seen; one that is left of an earlier start is to
    be ended anyway.
    """
    hosts = {host.name: host for host in fleet.hosts}
    leaked = {
        (name, process.pid)
        for name, state in snapshot.reachable().items()
        for service in state.all_services.values()
        for process in service.leaked
    }
    for row in rows:
        if not (row.process and row.of_app) or row.process.leftover or row.process.stopped:
            continue
        if (row.host, row.process.pid) in leaked:
            continue
        host = hosts[row.host]
        if row.at_ours is False:
            yield from _elsewhere(fleet, snapshot, row)
        elif is_named_otherwise(fleet, host, row):
            yield _named_otherwise(
                host, host.workers_of(row.service)[0], row, snapshot.reachable()[row.host]
            )


def is_named_otherwise(fleet: Fleet, host: FleetHost, row: Row) -> bool:
    """Whether a worker of the inventory answers, and in another name."""
    workers, answer = host.workers_of(row.service), row.answer
    return bool(
        workers and answer and not any(_is_named(fleet, host, one, answer) for one in workers)
    )


def _is_named(fleet: Fleet, host: FleetHost, worker: Worker, node: NodeState) -> bool:
    """Whether the node has the worker's name, or that of another: of one machine's two names, say."""
    wanted = worker.node or host.node(worker)
    return fits(node.name, wanted) or node.name in fleet.all_nodes


def _elsewhere(fleet: Fleet, snapshot: Snapshot, row: Row) -> Iterator[Finding]:
    """One at another broker, or db, than the inventory's; where the application names another, that
    is the fault.
    """
    assert row.process
    ours, given = place_of(fleet.app.broker_url.get_secret_value()), row.process.options.broker
    state = snapshot.reachable()[row.host]
    now = {str(place.usual) for place in state.application.broker} if state.application else set()
    service = row.service if row.expected else ""
    if service and now and now != {str(ours)} and not given:
        return
    kind = row.process.options.role
    if given:
        help_ = "a restart does not help: what starts it has to name another"
    elif now:
        help_ = (
            f"the application on {row.host} names {', '.join(sorted(now))} now, which a restart"
            " makes it work with"
        )
    else:
        help_ = (
            "a restart does not help, unless what names its broker has changed since it was started"
        )
    this = fleet.worded("the inventory's broker", "the broker that was looked at")
    yield Finding(
        f"{kind}.other_broker",
        f"{service or f'process {row.process.pid}'} on {row.host}",
        f"{service or f'a {kind} of {fleet.app.app}'} works with {row.broker}, and {this} is"
        f" {ours}",
        (f"seen: {which(row)}", _named_where(row), help_),
        severity=(
            Severity.ERROR if service else Severity.WARNING if row.process.here else Severity.INFO
        ),
        blocks=(Block(row.host, service),) if service and (given or not now) else (),
    )


def _named_where(row: Row) -> str:
    assert row.process
    if row.process.options.broker:
        return f"its command line names it: -b {row.process.options.broker}"
    if row.seen_by is SeenBy.CLIENT_LIST:
        return f"CLIENT LIST has its connection in db {row.broker.db if row.broker else '?'}"
    return "its environment names it, as it was when it was started"


def _named_otherwise(host: FleetHost, worker: Worker, row: Row, state: HostState) -> Finding:
    """**Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: with %h it is the host's own
    name.
    """
    assert row.answer
    wanted, (name, _, place) = host.node(worker), row.answer.name.partition("@")
    advice = [
        f"give the worker `node: {row.answer.name}` in the inventory",
        f"start it with -n {wanted}",
    ]
    if name == wanted.partition("@")[0]:
        advice.insert(0, f"name the host {place} in the inventory")
    return Finding(
        "worker.named_otherwise",
        wanted,
        f"{worker.name} runs, and answers as {row.answer.name}, not as {wanted}",
        (
            f"inspect stats of {row.answer.name}: {which(row)}",
            *given_in(host, worker.known_as, state, "-n", "--hostname"),
            f"a restart does not help: {', or '.join(advice)}",
        ),
        blocks=(Block(host.name, worker.known_as),),
    )


def twins(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> Iterator[Finding]:
    """Several workers under one name: as many as answer to it, or as were seen, whichever are more."""
    assert snapshot.broker
    workers = {
        host.node(worker): (host, worker)
        for host in fleet.hosts
        for worker in host.settings.workers
    }
    seen = defaultdict[str, list[Row]](list)
    answering = {name: node.twins for name, node in snapshot.broker.nodes.items()}
    ours = {*workers, *answering}
    for row in rows:
        takes_messages = row.process and not (
            row.process.leftover or row.process.stopped or row.at_ours is False
        )
        may_be_ours = row.of_app is None and row.node in ours
        if takes_messages and row.node and (row.of_app or row.at_ours or may_be_ours):
            seen[row.node].append(row)
    for name in sorted({*seen, *answering}):
        processes, number = seen[name], max(len(seen[name]), answering.get(name, 0))
        if number < 2 or _leaks(snapshot, *workers.get(name, ())):
            continue
        yield Finding(
            "worker.twins",
            name,
            (
                f"{number} workers answer as {name}, so one that nobody knows of takes"
                " messages, too"
                if answering.get(name, 0) == number
                else f"{number} workers are called {name}, and each takes messages"
            ),
            (
                f"inspect ping: {counted(answering.get(name, 0), 'answer')} from {name}",
                *(_told(fleet, snapshot, row) for row in processes),
                *([] if processes else ["one may be of an older start, or run on another machine"]),
                *_to_end(fleet, processes),
                "where all are wanted, start each with a name of its own: -n NAME@HOST",
            ),
            blocks=(
                (Block(workers[name][0].name, workers[name][1].known_as),)
                if name in workers
                else ()
            ),
        )


def _leaks(snapshot: Snapshot, host: FleetHost | None = None, worker: Worker | None = None) -> bool:
    """Whether what is left of it in its unit is planned to be ended: that is the twin."""
    state = snapshot.reachable().get(host.name) if host else None
    service = state.services.get(worker.known_as) if state and worker else None
    return bool(service and service.leaked)


def _is_service(fleet: Fleet, row: Row) -> bool:
    """Whether it is of a service, and so told from what else runs."""
    return row.expected and any(
        host.name == row.host and fleet.tells_services(host) for host in fleet.hosts
    )


def _told(fleet: Fleet, snapshot: Snapshot, row: Row) -> str:
    assert row.process
    age_s = snapshot.reachable()[row.host].clock_at - row.process.started_at
    its = (
        fleet.worded(f" (the inventory's {row.service})", f" ({row.service})")
        if _is_service(fleet, row)
        else ""
    )
    below = f", below {row.process.wrappers[0]}" if row.process.wrappers else ""
    return f"seen: {which(row)}{its}{below}; it has been running for {span(age_s)}"


def _to_end(fleet: Fleet, rows: Sequence[Row]) -> Iterator[str]:
    """What ends those that are of no service."""
    others = [row for row in rows if not _is_service(fleet, row)]
    if others and len(others) == len(rows):
        yield "end all but one of them"
    for row in others:
        assert row.process
        assert row.by
        yield f"to end pid {row.process.pid}, on {row.host}: {ended_by(row.by, row.process.pid)}"
