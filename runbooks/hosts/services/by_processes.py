"""Which of a host's Celery processes are which services, where no service manager tells it."""

from collections.abc import Iterator, Sequence

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.core.nodes import may_be
from runbooks.hosts.census import is_its, is_service, told_as


def states_of(
    host: FleetHost, app: str, services: Sequence[str], census: Census
) -> dict[str, ServiceState]:
    """The state of each service by its name: the oldest process that is this one's, and no other's.

    A worker is known by its node's name, and where its command line has none that tells, by its
    queues. Where a process may be the service, or some are hidden, that is not known (`untold`):
    "it does not run" would start a second one.
    """
    seen = _Seen(host, app, census)
    return {service: _state(seen, service) for service in services}


class _Seen:
    """The main processes of a host: the application's, those that may be, and another's in its
    folder.
    """

    def __init__(self, host: FleetHost, app: str, census: Census) -> None:
        self.host, self.app, self.census = host, app, census
        left_out = (Kind.CHILD, Kind.EMBEDDED_BEAT)
        mains = [one for one in census.processes if not (one.leftover or one.kind in left_out)]
        whose = [(one, is_its(app, one, everywhere=host.manager.is_the_machines)) for one in mains]
        self.its = [one for one, is_ours in whose if is_ours]
        self.unseen = [one for one, is_ours in whose if is_ours is None]
        self.of_others = [
            one for one, is_ours in whose if is_ours is False and one.here and one.options.node
        ]


def _state(seen: _Seen, service: str) -> ServiceState:
    host = seen.host
    kind = "beat" if service == host.beat else f"worker {_node(host, service)}"
    if sure := [one for one in seen.its if _fitting(host, service, one.options) == [service]]:
        main = min(sure, key=lambda one: _order(one, service == host.beat))
        below = {one.pid: one.inner_pid for one in seen.census.children_of(main.pid)}
        return ServiceState(
            main.pid, main.started_at, f"pid {main.pid} is {told_as(main)}",
            pids={main.pid: main.inner_pid} | below, start_ticks=main.start_ticks,
        )  # fmt: skip
    answer = f"no {kind} of {seen.app} in {host.settings.directory}"
    return ServiceState(None, None, answer, untold="; ".join(_doubts(seen, service)))


def _order(one: CeleryProcess, beat: bool) -> tuple[bool, bool, bool, int]:
    """The best first: one that is nothing but beat, whose signals are clear, which has the name,
    the oldest.
    """
    return (
        beat and one.options.role != "beat",
        one.kind is Kind.UNCLEAR,
        not one.options.node,
        one.start_ticks,
    )


def _doubts(seen: _Seen, service: str) -> Iterator[str]:
    """Why a service that is not seen to run may do so all the same."""
    for one in seen.its:
        if service in (fitting := _fitting(seen.host, service, one.options)):
            others = " or ".join(name for name in fitting if name != service)
            yield f"pid {one.pid} ({told_as(one)}) may be it, or {others}"
    for one in seen.unseen:
        if service in _fitting(seen.host, service, one.options):
            yield (
                f"pid {one.pid} ({told_as(one)}) of {one.user} may be it, and its folder is not"
                " shown"
            )
    for one in seen.of_others:
        if service in _fitting(seen.host, service, one.options):
            yield (
                f"pid {one.pid} ({told_as(one)}) is started there with -A {one.options.app}, not -A"
                f" {seen.app}"
            )
    if seen.census.hidden:
        yield "the processes of other users are hidden"


def _fitting(host: FleetHost, service: str, options: Options) -> list[str]:
    """The services that a process with these options may be; `service` may be one that the
    inventory does not have.
    """
    if options.role == "beat":
        return [host.beat]
    if service == host.beat:
        return [service] if options.with_beat else []
    workers = dict.fromkeys((*(worker.known_as for worker in host.settings.workers), service))
    named = [one for one in workers if is_it(host, one, options)]
    consuming = [
        one for one in named if (w := host.worker_of(one)) and set(w.queues) == set(options.queues)
    ]
    return consuming if len(named) > 1 and consuming else named


def _node(host: FleetHost, service: str) -> str:
    worker = host.worker_of(service)
    return worker.node if worker and worker.node else host.node_of(service)


def is_it(host: FleetHost, service: str, options: Options) -> bool:
    """Whether what runs is this service's worker, by its node's name where that is known, or beat."""
    worker = host.worker_of(service)
    if not (worker and worker.node):
        return is_service(options, "" if service == host.beat else host.node_of(service))
    return options.role == "worker" and (not options.node or may_be(options.node, worker.node))
