"""What another run explains that is going on: what it restarts is no fault of the fleet."""

from collections.abc import Collection, Iterable, Iterator

from msgspec.structs import replace

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, OtherRun, Severity, Snapshot
from runbooks.core.wording import going_on

_OF_SERVICES = frozenset(
    {
        "beat.not_running", "beat.other_process", "service.runs_elsewhere", "task.not_registered",
        "worker.answered_by_another", "worker.leaked_processes", "worker.not_answering", "worker.not_consuming",
        "worker.not_running", "worker.other_process", "worker.outdated", "worker.starting", "worker.takes_nothing",
        "worker.twins",
    }
)  # fmt: skip
_OF_THE_FLEET = frozenset(
    {
        "beat.silent", "queue.aside", "queue.no_consumer", "queue.orphaned", "route.no_consumer",
        "schedule.no_consumer", "schedule.not_registered", "schedule.unknown_task", "worker.deaf",
    }
)  # fmt: skip
MAY_BE_ITS_DOING = _OF_SERVICES | _OF_THE_FLEET
"""The findings that a fleet which is well has, too, while a run restarts its services or works on
its queues.
"""


def without_its_doing(
    fleet: Fleet, snapshot: Snapshot, findings: Iterable[Finding]
) -> Iterator[Finding]:
    """The findings, those of services that another run is restarting as one for each of these,
    which is no fault.

    Where it is not known what the run is doing, those that may be its doing say so.
    """
    if not (run := snapshot.other_run):
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
    """What a run has set aside it works on, as far as anybody can tell before it ends."""
    if finding.code == "queue.aside":
        return replace(
            finding,
            evidence=(*finding.evidence, going_on(run)),
            remedy=None,
            fix=(),
            severity=Severity.INFO,
        )
    if run.restarts is None and finding.code in MAY_BE_ITS_DOING:
        return replace(
            finding, evidence=(*finding.evidence, f"{going_on(run)}; it may be the reason")
        )
    return finding


def _restarted(
    fleet: Fleet, finding: Finding, restarts: Collection[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The services that are being restarted, where that explains the whole finding; each after its
    host.
    """
    hosts = {host.name: host for host in fleet.hosts}
    names = {f"{service} on {host}": (host, service) for host, service in restarts}
    names |= {
        node: (host, service)
        for host, service in restarts
        if host in hosts
        for node in hosts[host].nodes_of(service)
    }
    if finding.code == "queue.no_consumer":
        consumers = [(host.name, one.known_as) for host in fleet.hosts for one in host.settings.workers
                     if finding.subject in one.queues]  # fmt: skip
        return [service for service in consumers if service in restarts]
    subjects = finding.subject.split(", ") if finding.code in _OF_SERVICES else []
    return (
        [names[subject] for subject in subjects]
        if subjects and all(one in names for one in subjects)
        else []
    )
