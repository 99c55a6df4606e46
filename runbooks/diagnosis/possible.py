"""What this tool does itself: a start or restart that it does not make is told to the operator, and
is in no plan.
"""

from collections.abc import Iterable, Iterator, Mapping
from shlex import quote

from msgspec.structs import replace

from runbooks.core.effects import Change, ControlService
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding
from runbooks.core.settings import filled

_OF_NODES = (
    "queue.few_consumers",
    "queue.no_consumer",
    "task.discarded",
    "task.not_registered",
    "worker.none_fits",
)
"""What may be wrong with nodes that no host of the inventory runs."""


def possible(fleet: Fleet, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings without the changes that this tool does not make; each says why, and what does
    it instead.
    """
    hosts = {host.name: host for host in fleet.hosts}
    for finding in findings:
        left = [change for change in finding.fix if _why_not(hosts, change)]
        told = [line for change in left for line in _told(fleet, hosts[change.host], change)]
        told += _by_their_platform(fleet, finding)
        fix = tuple(change for change in finding.fix if change not in left)
        remedy = finding.remedy if fix or not left else None
        evidence = (*finding.evidence, *dict.fromkeys(told))
        yield replace(finding, evidence=evidence, fix=fix, remedy=remedy) if told else finding


def _why_not(hosts: Mapping[str, FleetHost], change: Change) -> str:
    host = hosts.get(change.host)
    return host.why_not(change.do.action) if host and isinstance(change.do, ControlService) else ""


def _told(fleet: Fleet, host: FleetHost, change: Change) -> Iterator[str]:
    assert isinstance(change.do, ControlService)
    why = host.why_not(change.do.action)
    yield (
        f"this tool does not {change.do.action} {', '.join(change.services)} on {host.name}: {why}"
    )
    for service in change.services:
        yield from _hint(fleet, host, service)


def _hint(fleet: Fleet, host: FleetHost, service: str) -> Iterator[str]:
    if fleet.app.restart_hint:
        yield f"what restarts {service}: {filled(fleet.app.restart_hint, host.words_of(service))}"


def _by_their_platform(fleet: Fleet, finding: Finding) -> Iterator[str]:
    """Of nodes that no host of the inventory runs; what the inventory does not know of one stays a
    placeholder.
    """
    if (
        finding.code not in _OF_NODES
        or finding.fix
        or not (fleet.app.restart_hint and fleet.app.nodes)
    ):
        return
    names = finding.subject.split(", ") if finding.code.startswith("task.") else []
    unknown = [name for name in names if name not in fleet.all_nodes]
    for name in unknown:
        yield f"what restarts {name}: {filled(fleet.app.restart_hint, {'node': quote(name)})}"
    if not names:
        yield f"what restarts their workers: {fleet.app.restart_hint}"


def not_restarted(fleet: Fleet, services: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Of these services, each after its host, those that this tool does not restart, though it was
    asked to.
    """
    asked = set(services)
    for host in fleet.hosts:
        names = [service for service in host.services if (host.name, service) in asked]
        if why := host.why_not("restart"):
            for name in names:
                yield Finding(
                    "service.not_restarted",
                    f"{name} on {host.name}",
                    "; ".join((f"this tool does not restart it: {why}", *_hint(fleet, host, name))),
                    blocks=(Block(host.name, name),),
                )
