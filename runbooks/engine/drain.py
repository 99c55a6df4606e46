"""Drain the nodes of workers before a restart, and wait for them after it.

Workers that were not restarted consume again.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlOther
from runbooks.core.fleet import FleetHost
from runbooks.core.model import HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.nodes import fits
from runbooks.core.settings import Worker
from runbooks.core.wording import first_few, span
from runbooks.diagnosis.task_lines import task_line
from runbooks.effects.dispatch import handler_of
from runbooks.engine.context import Session
from runbooks.engine.run import Run

PAUSE_S = 0.02
"""Between two commands to Redis; they do not contact hosts."""

DRAIN_S = 10.0
LOOK_S = 3.0
"""Rare looks are enough: a service comes up within this time, and a failed one stays failed."""

Service = tuple[str, str]
"""A host, and one of its services."""

Node = tuple[str, Sequence[str]]
"""Celery's name of a node, and the queues of its worker."""


@contextmanager
def drained(
    run: Run, hosts: Sequence[FleetHost], changes: Sequence[Change]
) -> Iterator[tuple[set[Service], Mapping[Service, str]]]:
    """Let workers finish what they hold before the block stops them.

    Yields a set to which the block adds the services that it stopped, and the services that must
    not be stopped, each with the reason: they did not finish within their stop timeout. With
    --kill-running, this waits only for tasks that end soon. After the block, however it ends, the
    workers that were not stopped consume again. Not while another run holds the lock, because it
    may be draining them: then a warning names them.
    """
    session = run.session
    ended: set[Service] = set()
    left: dict[Service, str] = {}
    workers = [
        *_workers(session, hosts, stopped_by(changes)),
        *_stale(session, hosts, changes).items(),
        *_others(changes),
    ]
    try:
        if workers:
            left = _drain(session, hosts, workers)
        yield ended, left
    finally:
        going_on = dict(worker for service, worker in workers if service not in ended)
        if going_on:
            _consume_again(run, going_on)


def _drain(
    session: Session, hosts: Sequence[FleetHost], workers: Sequence[tuple[Service, Node]]
) -> dict[Service, str]:
    """Drain these workers; return those that must not be stopped, each with the reason."""
    patience_s = max(host.settings.stop_timeout for host in hosts)
    may_kill = session.options.kill_running
    drain_s = patience_s
    if may_kill:
        drain_s = min(DRAIN_S, patience_s)
    queues_of = dict(worker for _, worker in workers)
    busy = session.broker.drain(queues_of, drain_s)
    left: dict[Service, str] = {}
    if may_kill:
        return left
    for service, (node, _) in workers:
        if node in busy:
            tasks = "; ".join(task_line(task) for task in busy[node])
            left[service] = (
                f"skipped: after {span(patience_s)} it still {tasks} (--kill-running stops it"
                " anyway)"
            )
    return left


def _consume_again(run: Run, nodes: Mapping[str, Sequence[str]]) -> None:
    session = run.session
    if not run.lock.is_anothers():
        session.broker.consume_again(nodes)
        return
    session.reporter.warning(
        f"{', '.join(sorted(nodes))} may have stopped consuming, and another run is changing the"
        " fleet",
        f"when that run has ended, run {Command('remediate')}",
    )


def stopped_by(changes: Sequence[Change]) -> Sequence[Service]:
    """Return the services that these changes stop or restart, each once."""
    services: list[Service] = []
    for change in changes:
        if handler_of(change.do).stops:
            services += changed(change)
    return list(dict.fromkeys(services))


def _workers(
    session: Session, hosts: Sequence[FleetHost], services: Collection[Service]
) -> Iterator[tuple[Service, Node]]:
    """Return the nodes of these services; a worker of several containers has several."""
    for host in hosts:
        for worker in host.settings.workers:
            if (host.name, worker.known_as) in services:
                node = host.node(worker)
                for name in session.node_names.get(node, (node,)):
                    yield (host.name, worker.known_as), (name, worker.queues)


def _stale(
    session: Session, hosts: Sequence[FleetHost], changes: Sequence[Change]
) -> dict[Service, Node]:
    """Return the nodes of services that are stopped because the inventory no longer has them.

    Their queues are those that the nodes report.
    """
    own = {(host.name, service) for host in hosts for service in host.services}
    stopped: dict[Service, str] = {}
    for change in changes:
        if not handler_of(change.do).controls:
            continue
        for service in changed(change):
            if service not in own:
                stopped[service] = f"{service[1]}@{service[0]}"
    if not stopped:
        return {}
    broker = session.observe(Needs.NODES, {host for host, _ in stopped}).broker
    if not broker:
        return {}
    found: dict[Service, Node] = {}
    for service, node in stopped.items():
        if node in broker.nodes:
            found[service] = (node, sorted(broker.nodes[node].queues))
    return found


def _others(changes: Sequence[Change]) -> Iterator[tuple[Service, Node]]:
    """Return the known nodes of workers that others have started."""
    for change in changes:
        if isinstance(change.do, ControlOther):
            for node, queues in change.do.nodes.items():
                yield changed_service(change), (node, queues)


def changed_service(change: Change) -> Service:
    """Return the host and the service of a change; the service may be ""."""
    return change.host, handler_of(change.do).service


def changed(change: Change) -> list[Service]:
    """Return the services of a change, also those that change only together with its own."""
    return [(change.host, service) for service in handler_of(change.do).services]


def await_nodes(
    session: Session, done: Sequence[Change], deadline: float, *, answering: bool = True
) -> None:
    """Wait until the started workers answer: until then a look at their hosts shows nothing new.

    Without `answering`, wait only until they are bound to remote control, as killed ones are too.
    Does not wait for workers whose service manager reports a failure.
    """
    started = _started(session, done)
    look_at = time.monotonic() + LOOK_S
    while time.monotonic() < deadline:
        if time.monotonic() >= look_at:
            started = _without_failed(session, started)
            look_at = time.monotonic() + LOOK_S
        listening = session.broker.listening()
        silent: set[str] = set()
        for host, worker in started:
            if not _hears(listening, host.node(worker), worker):
                silent.add(host.node(worker))
        if answering and not silent:  # takes as long as the nodes need to answer
            broker = session.observe(Needs.NODES, {host.name for host, _ in started}).broker
            assert broker is not None
            silent = {host.node(worker) for host, worker in started} - broker.nodes.keys()
        if not silent:
            return
        session.reporter.waiting(f"waiting for {first_few(sorted(silent))} to answer")
        time.sleep(PAUSE_S)


def _started(session: Session, done: Sequence[Change]) -> list[tuple[FleetHost, Worker]]:
    """Return the workers that these changes started, each with its host."""
    services: set[Service] = set()
    for change in done:
        if handler_of(change.do).starts:
            services.update(changed(change))
    started = []
    for host in session.fleet.hosts:
        for worker in host.settings.workers:
            if (host.name, worker.known_as) in services:
                started.append((host, worker))
    return started


def _hears(listening: Collection[str], node: str, worker: Worker) -> bool:
    """Whether a node that may be this worker is bound: its name may change with each start."""
    if not worker.node:
        return node in listening
    return any(fits(name, worker.node) for name in listening)


def _without_failed(
    session: Session, started: Sequence[tuple[FleetHost, Worker]]
) -> list[tuple[FleetHost, Worker]]:
    """Return those of these workers whose service manager has not reported a failure."""
    hosts = set()
    for host, _ in started:
        if host.manager.gives_up:
            hosts.add(host.name)
    if not hosts:
        return list(started)
    states = session.observe(Needs.SERVICES, hosts).reachable()
    waited_for = []
    for host, worker in started:
        if not gave_up((host.name, worker.known_as), states.get(host.name)):
            waited_for.append((host, worker))
    return waited_for


def all_gave_up(changes: Iterable[Change], states: Mapping[str, HostState | Unreachable]) -> bool:
    """Whether the services of all these changes have failed for good."""
    for change in changes:
        if not gave_up(changed_service(change), states.get(change.host)):
            return False
    return True


def gave_up(service: Service, state: HostState | Unreachable | None) -> bool:
    """Whether the service manager reports that the service has failed for good."""
    if not isinstance(state, HostState):
        return False
    _, name = service
    found = state.services.get(name)
    return found is not None and found.gave_up
