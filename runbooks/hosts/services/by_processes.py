"""Match a host's Celery processes to services, if no service manager reports them."""

from collections.abc import Iterator, Sequence

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.core.nodes import may_be
from runbooks.hosts.census import is_its, is_service, label_of


def states_of(
    host: FleetHost, app: str, services: Sequence[str], census: Census
) -> dict[str, ServiceState]:
    """Return the state of each service: the oldest process that can only be this service.

    A worker is recognised by its node's name, or if its command line has none, by its queues. If a
    process may be the service, or if processes are hidden, the state is unknown (`why_unknown`):
    "it does not run" would start a second one.
    """
    seen = _Seen(host, app, census)
    return {service: _state(seen, service) for service in services}


class _Seen:
    """The main processes of a host that may be of interest."""

    def __init__(self, host: FleetHost, app: str, census: Census) -> None:
        self.host = host
        self.app = app
        self.census = census
        self.its: list[CeleryProcess] = []
        """The application's."""
        self.unseen: list[CeleryProcess] = []
        """Those whose folder is hidden."""
        self.of_others: list[CeleryProcess] = []
        """Another application's, in our folder."""
        for one in census.processes:
            if one.leftover or one.kind in (Kind.CHILD, Kind.EMBEDDED_BEAT):
                continue
            is_ours = is_its(app, one, everywhere=host.manager.is_the_machines)
            if is_ours:
                self.its.append(one)
            elif is_ours is None:
                self.unseen.append(one)
            elif one.here and one.options.node:
                self.of_others.append(one)


def _state(seen: _Seen, service: str) -> ServiceState:
    host = seen.host
    sure = [one for one in seen.its if _fitting(host, service, one.options) == [service]]
    if sure:
        main = min(sure, key=lambda one: _order(one, service == host.beat))
        pids = {main.pid: main.inner_pid}
        for child in seen.census.children_of(main.pid):
            pids[child.pid] = child.inner_pid
        return ServiceState(
            main.pid,
            main.started_at,
            f"pid {main.pid} is {label_of(main)}",
            pids=pids,
            start_ticks=main.start_ticks,
        )
    kind = "beat"
    if service != host.beat:
        kind = f"worker {_node(host, service)}"
    answer = f"no {kind} of {seen.app} in {host.settings.directory}"
    return ServiceState(None, None, answer, why_unknown="; ".join(_doubts(seen, service)))


def _order(one: CeleryProcess, beat: bool) -> tuple[bool, bool, bool, int]:
    """Sort the best first: only a beat, clear signals, an explicit node name, the oldest."""
    return (
        beat and one.options.role != "beat",
        one.kind is Kind.UNCLEAR,
        not one.options.node,
        one.start_ticks,
    )


def _doubts(seen: _Seen, service: str) -> Iterator[str]:
    """Yield the reasons why a service that was not found may be running."""
    for one in seen.its:
        fitting = _fitting(seen.host, service, one.options)
        if service in fitting:
            others = " or ".join(name for name in fitting if name != service)
            yield f"pid {one.pid} ({label_of(one)}) may be it, or {others}"
    for one in seen.unseen:
        if service in _fitting(seen.host, service, one.options):
            yield (
                f"pid {one.pid} ({label_of(one)}) of {one.user} may be it, but its folder is hidden"
            )
    for one in seen.of_others:
        if service in _fitting(seen.host, service, one.options):
            yield (
                f"pid {one.pid} ({label_of(one)}) was started there with -A {one.options.app}, not"
                f" -A {seen.app}"
            )
    if seen.census.hidden:
        yield "the processes of other users are hidden"


def _fitting(host: FleetHost, service: str, options: Options) -> list[str]:
    """Return the services that a process may be; `service` need not be in the inventory."""
    if options.role == "beat":
        return [host.beat]
    if service == host.beat:
        if options.with_beat:
            return [service]
        return []
    workers = [worker.known_as for worker in host.settings.workers]
    named = [one for one in dict.fromkeys((*workers, service)) if is_it(host, one, options)]
    if len(named) <= 1:
        return named
    consuming = [one for one in named if _consumes(host, one, options)]
    return consuming or named


def _consumes(host: FleetHost, service: str, options: Options) -> bool:
    """Whether a worker has exactly the queues of these options."""
    worker = host.worker_of(service)
    return worker is not None and set(worker.queues) == set(options.queues)


def _node(host: FleetHost, service: str) -> str:
    worker = host.worker_of(service)
    if worker and worker.node:
        return worker.node
    return host.node_of(service)


def is_it(host: FleetHost, service: str, options: Options) -> bool:
    """Whether options are those of this service: beat, or a worker by its node's name if known."""
    if service == host.beat:
        return is_service(options, "")
    worker = host.worker_of(service)
    if not (worker and worker.node):
        return is_service(options, host.node_of(service))
    return options.role == "worker" and (not options.node or may_be(options.node, worker.node))
