"""Find workers with another broker or name than the inventory expects, or with the same name."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

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
    """Yield the application's workers with another broker or name than expected.

    What is left of an earlier start must be ended anyway.
    """
    hosts = {host.name: host for host in fleet.hosts}
    leaked = set[tuple[str, int]]()
    for name, state in snapshot.reachable().items():
        for service in state.all_services.values():
            leaked.update((name, process.pid) for process in service.leaked)
    for row in rows:
        if not (row.process and row.of_app) or row.process.leftover or row.process.stopped:
            continue
        if (row.host, row.process.pid) in leaked:
            continue
        host = hosts[row.host]
        if row.at_ours is False:
            yield from _elsewhere(fleet, snapshot, row)
        elif is_named_otherwise(fleet, host, row):
            worker = host.workers_of(row.service)[0]
            yield _named_otherwise(host, worker, row, snapshot.reachable()[row.host])


def is_named_otherwise(fleet: Fleet, host: FleetHost, row: Row) -> bool:
    """Return whether a worker of the inventory answers under another name."""
    workers = host.workers_of(row.service)
    answer = row.answer
    if not workers or not answer:
        return False
    return not any(_is_named(fleet, host, worker, answer) for worker in workers)


def _is_named(fleet: Fleet, host: FleetHost, worker: Worker, node: NodeState) -> bool:
    """Return whether the node has the worker's name, or another name of the inventory.

    One machine may have two names there.
    """
    wanted = worker.node or host.node(worker)
    return fits(node.name, wanted) or node.name in fleet.all_nodes


def _elsewhere(fleet: Fleet, snapshot: Snapshot, row: Row) -> Iterator[Finding]:
    """Yield a worker or beat at another broker or db than the inventory's.

    If the application names another one, that is the fault.
    """
    assert row.process
    ours = place_of(fleet.app.broker_url.get_secret_value())
    given = row.process.options.broker
    state = snapshot.reachable()[row.host]
    now = {str(place.usual) for place in state.application.broker} if state.application else set()
    service = row.service if row.expected else ""
    if service and now and now != {str(ours)} and not given:
        return
    kind = row.process.options.role
    if given:
        advice = "a restart does not help: its start command has to name another broker"
    elif now:
        names = ", ".join(sorted(now))
        advice = f"the application on {row.host} now names {names}: a restart makes it use that"
    else:
        advice = "a restart does not help, unless its broker setting has changed since its start"
    severity = Severity.WARNING if row.process.here else Severity.INFO
    if service:
        severity = Severity.ERROR
    blocks: tuple[Block, ...] = ()
    if service and (given or not now):
        blocks = (Block(row.host, service),)
    this = fleet.worded("the inventory's broker", "the broker that was checked")
    yield Finding(
        f"{kind}.other_broker",
        f"{service or f'process {row.process.pid}'} on {row.host}",
        f"{service or f'a {kind} of {fleet.app.app}'} uses {row.broker}, but {this} is {ours}",
        (f"seen: {which(row)}", _named_where(row), advice),
        severity=severity,
        blocks=blocks,
    )


def _named_where(row: Row) -> str:
    assert row.process
    if row.process.options.broker:
        return f"its command line names it: -b {row.process.options.broker}"
    if row.seen_by is SeenBy.CLIENT_LIST:
        return f"CLIENT LIST has its connection in db {row.broker.db if row.broker else '?'}"
    return "its environment at its start names it"


def _named_otherwise(host: FleetHost, worker: Worker, row: Row, state: HostState) -> Finding:
    """**Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: %h is the host's name."""
    assert row.answer
    wanted = host.node(worker)
    name, _, place = row.answer.name.partition("@")
    advice = [
        f"give the worker `node: {row.answer.name}` in the inventory",
        f"start it with -n {wanted}",
    ]
    if name == wanted.partition("@")[0]:
        advice.insert(0, f"name the host {place} in the inventory")
    return Finding(
        "worker.named_otherwise",
        wanted,
        f"{worker.name} runs, but answers as {row.answer.name}, not as {wanted}",
        (
            f"inspect stats of {row.answer.name}: {which(row)}",
            *given_in(host, worker.known_as, state, "-n", "--hostname"),
            f"a restart does not help: {', or '.join(advice)}",
        ),
        blocks=(Block(host.name, worker.known_as),),
    )


def twins(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> Iterator[Finding]:
    """Yield the names of several workers: as many as answer or were seen, whichever are more."""
    assert snapshot.broker
    workers = {}
    for host in fleet.hosts:
        for worker in host.settings.workers:
            workers[host.node(worker)] = (host, worker)
    answering = {name: node.twins for name, node in snapshot.broker.nodes.items()}
    seen = _taking_messages(rows, {*workers, *answering})
    for name in sorted({*seen, *answering}):
        processes = seen[name]
        answers = answering.get(name, 0)
        number = max(len(processes), answers)
        if number < 2 or _leaks(snapshot, *workers.get(name, ())):
            continue
        summary = f"{number} workers are named {name}, and each takes messages"
        if answers == number:
            summary = f"{number} workers answer as {name}, so an unknown one takes messages, too"
        evidence = [f"inspect ping: {counted(answers, 'answer')} from {name}"]
        evidence += [_seen(fleet, snapshot, row) for row in processes]
        if not processes:
            evidence.append("one may be of an older start, or run on another machine")
        evidence += _to_end(fleet, processes)
        evidence.append("to keep them all, start each with its own name: -n NAME@HOST")
        blocks: tuple[Block, ...] = ()
        if name in workers:
            host, worker = workers[name]
            blocks = (Block(host.name, worker.known_as),)
        yield Finding("worker.twins", name, summary, tuple(evidence), blocks=blocks)


def _taking_messages(rows: Iterable[Row], ours: Collection[str]) -> dict[str, list[Row]]:
    """Return the workers that take messages, by their node names, as far as they may be ours."""
    seen = defaultdict[str, list[Row]](list)
    for row in rows:
        if not row.process or row.process.leftover or row.process.stopped or row.at_ours is False:
            continue
        may_be_ours = row.of_app is None and row.node in ours
        if row.node and (row.of_app or row.at_ours or may_be_ours):
            seen[row.node].append(row)
    return seen


def _leaks(snapshot: Snapshot, host: FleetHost | None = None, worker: Worker | None = None) -> bool:
    """Return whether its unit has processes of an earlier start: then one of them is the twin."""
    state = snapshot.reachable().get(host.name) if host else None
    service = state.services.get(worker.known_as) if state and worker else None
    return bool(service and service.leaked)


def _is_service(fleet: Fleet, row: Row) -> bool:
    """Return whether it belongs to a service, on a host whose services are known."""
    if not row.expected:
        return False
    return any(host.name == row.host and fleet.tells_services(host) for host in fleet.hosts)


def _seen(fleet: Fleet, snapshot: Snapshot, row: Row) -> str:
    assert row.process
    age_s = snapshot.reachable()[row.host].clock_at - row.process.started_at
    its = ""
    if _is_service(fleet, row):
        its = fleet.worded(f" (the inventory's {row.service})", f" ({row.service})")
    below = f", below {row.process.wrappers[0]}" if row.process.wrappers else ""
    return f"seen: {which(row)}{its}{below}; it has been running for {span(age_s)}"


def _to_end(fleet: Fleet, rows: Sequence[Row]) -> Iterator[str]:
    """Yield how to end those that belong to no service."""
    others = [row for row in rows if not _is_service(fleet, row)]
    if others and len(others) == len(rows):
        yield "end all but one of them"
    for row in others:
        assert row.process
        assert row.by
        yield f"to end pid {row.process.pid}, on {row.host}: {ended_by(row.by, row.process.pid)}"
