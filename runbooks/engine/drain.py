"""The workers' nodes around a restart: drained before it, awaited after it, at work again where it was not made."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlService, WriteFile
from runbooks.core.fleet import FleetHost, service_of, unit_of
from runbooks.core.model import HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.wording import span
from runbooks.diagnosis.told import told
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
    """Before workers are stopped, what they hold is finished; those that do not are told, and why they are left alone.

    They may take as long as their stop would. Where what runs may be killed, only what ends soon is waited for.
    The block is to tell which were ended; the others take messages again when it ends, however it ends. Not while
    another run is at work, which may be draining them: then they are named.
    """
    session = run.session
    ended: set[Service] = set()
    left: dict[Service, str] = {}
    workers = _workers(hosts, changes, but="start") | _stale(session, hosts, changes)
    try:
        if workers:
            patience_s = max(host.settings.stop_timeout for host in hosts)
            may_kill = session.options.kill_running
            busy = session.broker.drain(dict(workers.values()), min(DRAIN_S, patience_s) if may_kill else patience_s)
            why = f"left alone: after {span(patience_s)} it still"
            nodes = {} if may_kill else busy
            left = {
                service: f"{why} {'; '.join(told(task) for task in nodes[node])} (--kill-running stops it anyway)"
                for service, (node, _) in workers.items()
                if node in nodes
            }
        yield ended, left
    finally:
        if going_on := dict(worker for service, worker in workers.items() if service not in ended):
            if not run.lock.is_anothers():
                session.broker.consume_again(going_on)
            else:
                session.reporter.warning(
                    f"{', '.join(sorted(going_on))} may have been told to take no messages, and another run is at work",
                    f"when that has ended, run {Command('remediate')}",
                )


def _workers(
    hosts: Sequence[FleetHost], changes: Sequence[Change], *, but: str
) -> dict[Service, tuple[str, Sequence[str]]]:
    """The node and queues of each worker that these changes start, stop or restart, `but` one of these."""
    services = {
        changed_service(change)
        for change in changes
        if isinstance(change.do, ControlService) and change.do.action != but
    }
    return {
        (host.name, worker.name): (host.node(worker), worker.queues)
        for host in hosts
        for worker in host.settings.workers
        if (host.name, worker.name) in services
    }


def _stale(
    session: Session, hosts: Sequence[FleetHost], changes: Sequence[Change]
) -> dict[Service, tuple[str, Sequence[str]]]:
    """The same of each worker that is stopped since the inventory no longer has it; its queues are what it says."""
    own = {(host.name, service) for host in hosts for service in host.services}
    stopped = {
        service: f"{service[1]}@{service[0]}"
        for change in changes
        if isinstance(change.do, ControlService) and (service := changed_service(change)) not in own
    }
    broker = session.observe(Needs.NODES, {host for host, _ in stopped}).broker if stopped else None
    nodes = broker.nodes if broker else {}
    return {service: (node, sorted(nodes[node].queues)) for service, node in stopped.items() if node in nodes}


def changed_service(change: Change) -> Service:
    """The service that a change is about, "" where it is about none; its unit is removed only once it is stopped."""
    if isinstance(change.do, WriteFile) and change.do.content is None:
        name = PurePosixPath(change.do.path).name
        return change.host, service_of(name) if unit_of(service_of(name)) == name else ""
    return change.host, change.service


def await_nodes(session: Session, done: Sequence[Change], deadline: float, *, answering: bool = True) -> None:
    """Wait until the workers that were started answer: until then a look at their hosts would show nothing new.

    Without `answering` only until they are bound to remote control, as are those that were killed. Those that their
    service manager says have failed are not waited for.
    """
    started = _workers(session.fleet.hosts, done, but="stop")
    nodes = {node for node, _ in started.values()}
    look_at = time.monotonic() + LOOK_S
    while time.monotonic() < deadline:
        if time.monotonic() >= look_at:
            nodes -= _failed(session, started)
            look_at = time.monotonic() + LOOK_S
        silent = nodes - session.broker.listening()
        if answering and not silent:  # asking takes as long as they need to answer
            broker = session.observe(Needs.NODES, {host for host, _ in started}).broker
            assert broker is not None
            silent = nodes - broker.nodes.keys()
        if not silent:
            return
        shown = sorted(silent)[:3]
        session.reporter.waiting(f"waiting for {', '.join(shown)}{', …' * (len(silent) > 3)} to answer")
        time.sleep(PAUSE_S)


def _failed(session: Session, started: Mapping[Service, tuple[str, Sequence[str]]]) -> set[str]:
    """The nodes of these services that their service manager has given up; only systemd tells."""
    hosts = {host.name for host in session.fleet.hosts if host.has_systemd} & {host for host, _ in started}
    states = session.observe(Needs.SERVICES, hosts).reachable() if hosts else {}
    return {node for service, (node, _) in started.items() if gave_up(service, states.get(service[0]))}


def gave_up(service: Service, state: HostState | Unreachable | None) -> bool:
    """Whether there is nothing to wait for: its manager says that the service has failed."""
    found = state.services.get(service[1]) if isinstance(state, HostState) else None
    return found is not None and found.gave_up
