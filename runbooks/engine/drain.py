"""The workers' nodes around a restart: drained before it, awaited after it, at work again where it
was not made.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlOther
from runbooks.core.fleet import FleetHost
from runbooks.core.model import HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.nodes import fits
from runbooks.core.settings import Worker
from runbooks.core.wording import span
from runbooks.diagnosis.told import told
from runbooks.effects.dispatch import handler_of
from runbooks.engine.context import Session
from runbooks.engine.run import Run

PAUSE_S = 0.02  # one command to Redis, and nothing to the hosts
DRAIN_S = 10.0
LOOK_S = 3.0  # seldom: a service that comes up does so by then, and what has failed stays so

Service = tuple[str, str]
"""A host, and a service of it."""


@contextmanager
def drained(
    run: Run, hosts: Sequence[FleetHost], changes: Sequence[Change]
) -> Iterator[tuple[set[Service], Mapping[Service, str]]]:
    """Before workers are stopped, what they hold is finished; those that do not are told, and why
    they are left alone.

    They may take as long as their stop would. Where what runs may be killed, only what ends soon is
    waited for. The block is to tell which were ended; the others take messages again when it ends,
    however it ends. Not while another run is at work, which may be draining them: then they are
    named.
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
            patience_s = max(host.settings.stop_timeout for host in hosts)
            may_kill = session.options.kill_running
            queues_of = dict(worker for _, worker in workers)
            busy = session.broker.drain(
                queues_of, min(DRAIN_S, patience_s) if may_kill else patience_s
            )
            why = f"left alone: after {span(patience_s)} it still"
            nodes = {} if may_kill else busy
            left = {
                service: (
                    f"{why} {'; '.join(told(task) for task in nodes[node])} (--kill-running stops"
                    " it anyway)"
                )
                for service, (node, _) in workers
                if node in nodes
            }
        yield ended, left
    finally:
        if going_on := dict(worker for service, worker in workers if service not in ended):
            if not run.lock.is_anothers():
                session.broker.consume_again(going_on)
            else:
                session.reporter.warning(
                    f"{', '.join(sorted(going_on))} may have been told to take no messages, and"
                    " another run is at work",
                    f"when that has ended, run {Command('remediate')}",
                )


def stopped_by(changes: Sequence[Change]) -> Sequence[Service]:
    """The services that these changes stop or restart, each once."""
    return list(
        dict.fromkeys(
            one for change in changes if handler_of(change.do).stops for one in changed(change)
        )
    )


def _workers(
    session: Session, hosts: Sequence[FleetHost], services: Collection[Service]
) -> Iterator[tuple[Service, tuple[str, Sequence[str]]]]:
    """The node, as Celery calls it, and queues of each worker of these services; of several
    containers each node.
    """
    for host in hosts:
        for worker in host.settings.workers:
            if (host.name, worker.known_as) in services:
                node = host.node(worker)
                for name in session.node_names.get(node, (node,)):
                    yield (host.name, worker.known_as), (name, worker.queues)


def _stale(
    session: Session, hosts: Sequence[FleetHost], changes: Sequence[Change]
) -> dict[Service, tuple[str, Sequence[str]]]:
    """The same of each worker that is stopped since the inventory no longer has it; its queues are
    what it says.
    """
    own = {(host.name, service) for host in hosts for service in host.services}
    stopped = {
        service: f"{service[1]}@{service[0]}"
        for change in changes
        if handler_of(change.do).controls
        for service in changed(change)
        if service not in own
    }
    broker = session.observe(Needs.NODES, {host for host, _ in stopped}).broker if stopped else None
    nodes = broker.nodes if broker else {}
    return {
        service: (node, sorted(nodes[node].queues))
        for service, node in stopped.items()
        if node in nodes
    }


def _others(changes: Sequence[Change]) -> Iterator[tuple[Service, tuple[str, Sequence[str]]]]:
    """The same of each worker that somebody else has started, as far as it can be told."""
    for change in changes:
        if isinstance(change.do, ControlOther):
            for node, queues in change.do.nodes.items():
                yield changed_service(change), (node, queues)


def changed_service(change: Change) -> Service:
    """The service with which a change is left alone, "" for none."""
    return change.host, handler_of(change.do).service


def changed(change: Change) -> list[Service]:
    """The same, with those that change only together with that one."""
    return [(change.host, service) for service in handler_of(change.do).services]


def await_nodes(
    session: Session, done: Sequence[Change], deadline: float, *, answering: bool = True
) -> None:
    """Wait until the workers that were started answer: until then a look at their hosts would show
    nothing new.

    Without `answering` only until they are bound to remote control, as are those that were killed.
    Those that their service manager says have failed are not waited for.
    """
    services = {
        service for change in done if handler_of(change.do).starts for service in changed(change)
    }
    started = [
        (host, worker)
        for host in session.fleet.hosts
        for worker in host.settings.workers
        if (host.name, worker.known_as) in services
    ]
    look_at = time.monotonic() + LOOK_S
    while time.monotonic() < deadline:
        if time.monotonic() >= look_at:
            started = _without_failed(session, started)
            look_at = time.monotonic() + LOOK_S
        listening = session.broker.listening()
        silent = {
            host.node(worker)
            for host, worker in started
            if not _hears(listening, host.node(worker), worker)
        }
        if answering and not silent:  # asking takes as long as they need to answer
            broker = session.observe(Needs.NODES, {host.name for host, _ in started}).broker
            assert broker is not None
            silent = {host.node(worker) for host, worker in started} - broker.nodes.keys()
        if not silent:
            return
        shown = sorted(silent)[:3]
        session.reporter.waiting(
            f"waiting for {', '.join(shown)}{', …' * (len(silent) > 3)} to answer"
        )
        time.sleep(PAUSE_S)


def _hears(listening: Collection[str], node: str, worker: Worker) -> bool:
    """Whether one that may be this worker is bound; what Celery calls it may be another name after
    each start.
    """
    return any(fits(name, worker.node) for name in listening) if worker.node else node in listening


def _without_failed(
    session: Session, started: Sequence[tuple[FleetHost, Worker]]
) -> list[tuple[FleetHost, Worker]]:
    """Those of these workers whose service manager has not given up, as far as it tells."""
    hosts = {host.name for host, _ in started if host.manager.gives_up}
    states = session.observe(Needs.SERVICES, hosts).reachable() if hosts else {}
    return [
        (host, worker)
        for host, worker in started
        if not gave_up((host.name, worker.known_as), states.get(host.name))
    ]


def gave_up(service: Service, state: HostState | Unreachable | None) -> bool:
    """Whether there is nothing to wait for: its manager says that the service has failed."""
    found = state.services.get(service[1]) if isinstance(state, HostState) else None
    return found is not None and found.gave_up
