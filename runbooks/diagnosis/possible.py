"""Leave to the operator the starts and restarts that this tool does not do itself."""

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
"""Faults that may concern nodes that no host of the inventory runs."""


def possible(fleet: Fleet, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings without the changes that this tool does not make.

    Their evidence says why, and what makes them instead.
    """
    hosts = {host.name: host for host in fleet.hosts}
    for finding in findings:
        fix = []
        lines = list[str]()
        for change in finding.fix:
            if _why_not(hosts, change):
                lines += _left(fleet, hosts[change.host], change)
            else:
                fix.append(change)
        remedy = finding.remedy if fix or not finding.fix else None
        lines += _by_their_platform(fleet, finding)
        if lines:
            evidence = (*finding.evidence, *dict.fromkeys(lines))
            finding = replace(finding, evidence=evidence, fix=tuple(fix), remedy=remedy)
        yield finding


def _why_not(hosts: Mapping[str, FleetHost], change: Change) -> str:
    host = hosts.get(change.host)
    return host.why_not(change.do.action) if host and isinstance(change.do, ControlService) else ""


def _left(fleet: Fleet, host: FleetHost, change: Change) -> Iterator[str]:
    assert isinstance(change.do, ControlService)
    action = change.do.action
    services = ", ".join(change.services)
    yield f"this tool does not {action} {services} on {host.name}: {host.why_not(action)}"
    for service in change.services:
        yield from _hint(fleet, host, service)


def _hint(fleet: Fleet, host: FleetHost, service: str) -> Iterator[str]:
    if fleet.app.restart_hint:
        yield f"to restart {service}: {filled(fleet.app.restart_hint, host.words_of(service))}"


def _by_their_platform(fleet: Fleet, finding: Finding) -> Iterator[str]:
    """Yield how to restart nodes that no host of the inventory runs.

    What the inventory does not know about one stays a placeholder.
    """
    hint = fleet.app.restart_hint
    if finding.code not in _OF_NODES or finding.fix or not (hint and fleet.app.nodes):
        return
    names = finding.subject.split(", ") if finding.code.startswith("task.") else []
    for name in names:
        if name not in fleet.all_nodes:
            yield f"to restart {name}: {filled(hint, {'node': quote(name)})}"
    if not names:
        yield f"to restart their workers: {hint}"


def not_restarted(fleet: Fleet, services: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Yield the services (host, service) that a restart was asked for and that this tool leaves."""
    asked = set(services)
    for host in fleet.hosts:
        why = host.why_not("restart")
        if not why:
            continue
        for name in [service for service in host.services if (host.name, service) in asked]:
            summary = "; ".join(
                (f"this tool does not restart it: {why}", *_hint(fleet, host, name))
            )
            yield Finding(
                "service.not_restarted",
                f"{name} on {host.name}",
                summary,
                blocks=(Block(host.name, name),),
            )
