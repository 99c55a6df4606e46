"""What another run that is going on explains: services that it restarts are not faults."""

from collections.abc import Collection, Iterable, Iterator

from msgspec.structs import replace

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, OtherRun, Severity, Snapshot
from runbooks.core.wording import going_on

_OF_SERVICES = frozenset(
    {
        "beat.not_running",
        "beat.other_process",
        "service.runs_elsewhere",
        "task.not_registered",
        "worker.answered_by_another",
        "worker.leaked_processes",
        "worker.not_answering",
        "worker.not_consuming",
        "worker.not_running",
        "worker.other_process",
        "worker.outdated",
        "worker.starting",
        "worker.takes_nothing",
        "worker.twins",
    }
)
_OF_THE_FLEET = frozenset(
    {
        "beat.silent",
        "queue.aside",
        "queue.no_consumer",
        "queue.orphaned",
        "route.no_consumer",
        "schedule.no_consumer",
        "schedule.not_registered",
        "schedule.unknown_task",
        "worker.deaf",
    }
)
MAY_BE_ITS_DOING = _OF_SERVICES | _OF_THE_FLEET
"""Findings that a healthy fleet may have while a run restarts services or works on queues."""


def without_its_doing(
    fleet: Fleet, snapshot: Snapshot, findings: Iterable[Finding]
) -> Iterator[Finding]:
    """Replace the findings of each service that another run is restarting by one note.

    If it is not known what the run is doing, findings that it may cause say so.
    """
    run = snapshot.other_run
    if not run:
        yield from findings
        return
    seen: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        restarted = _restarted(fleet, finding, run.restarts or ())
        for service in restarted:
            seen.setdefault(service, []).append(finding.summary)
        if not restarted:
            yield _perhaps_its_doing(finding, run)
    for (host, name), summaries in seen.items():
        yield Finding(
            "service.being_restarted",
            f"{name} on {host}",
            f"{name} is being restarted by run {run.id}",
            tuple(summaries),
            severity=Severity.INFO,
        )


def _perhaps_its_doing(finding: Finding, run: OtherRun) -> Finding:
    """Add to a finding that the run may cause it; messages that are set aside are only a note."""
    if finding.code == "queue.aside":
        evidence = (*finding.evidence, going_on(run))
        return replace(finding, evidence=evidence, remedy=None, fix=(), severity=Severity.INFO)
    if run.restarts is None and finding.code in MAY_BE_ITS_DOING:
        evidence = (*finding.evidence, f"{going_on(run)}; it may be the reason")
        return replace(finding, evidence=evidence)
    return finding


def _restarted(
    fleet: Fleet, finding: Finding, restarts: Collection[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the services (host, service) whose restart explains the whole finding; else none."""
    if finding.code == "queue.no_consumer":
        return [one for one in _consumers(fleet, finding.subject) if one in restarts]
    if finding.code not in _OF_SERVICES:
        return []
    names = _names(fleet, restarts)
    subjects = finding.subject.split(", ")
    if any(one not in names for one in subjects):
        return []
    return [names[one] for one in subjects]


def _consumers(fleet: Fleet, queue: str) -> Iterator[tuple[str, str]]:
    """Yield the services that should consume a queue."""
    for host in fleet.hosts:
        for worker in host.settings.workers:
            if queue in worker.queues:
                yield host.name, worker.known_as


def _names(fleet: Fleet, restarts: Collection[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return the services that are being restarted, by their subjects and by their nodes."""
    hosts = {host.name: host for host in fleet.hosts}
    names: dict[str, tuple[str, str]] = {}
    for host, service in restarts:
        names[f"{service} on {host}"] = (host, service)
        if host in hosts:
            for node in hosts[host].nodes_of(service):
                names[node] = (host, service)
    return names
