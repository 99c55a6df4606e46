"""Snapshot → findings: every family of causes is asked in turn, the ones that explain the others first."""

from collections.abc import Collection, Mapping, Sequence

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.diagnosis import broker, code, config, lockout, probes, queues, workers
from runbooks.steps.files import Kind, Wanted

_ORDER = list(Severity)
_UNHEARD = ("worker.no_remote_control", "broker.not_the_workers", "broker.options_differ")
"""Why workers do not answer what they are asked, though they may be well: where it blocks, restarting mends nothing."""


def diagnose(fleet: Fleet, snapshot: Snapshot, files: Mapping[Kind, Wanted]) -> tuple[Finding, ...]:
    """Name every fault of the fleet with the evidence for it, errors first. Pure: all it knows is the snapshot."""
    findings = [
        *broker.findings(fleet, snapshot),
        *code.findings(fleet, snapshot),
        *lockout.findings(fleet, snapshot),
        *workers.findings(fleet, snapshot),
        *queues.findings(fleet, snapshot),
        *probes.findings(fleet, snapshot),
        *config.findings(fleet, snapshot, files),
    ]
    unloaded = ("task.import_fails", "host.probe_failed")
    explained = {finding.subject for finding in findings if finding.code in unloaded and finding.remedy}
    findings = [f for f in findings if not (f.code == "environment.differs" and f.subject in explained)]
    unheard = {finding.subject for finding in findings if finding.code in _UNHEARD and finding.blocks}
    findings = _heard(fleet, snapshot, findings, unheard)
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def _heard(fleet: Fleet, snapshot: Snapshot, findings: Sequence[Finding], hosts: Collection[str]) -> list[Finding]:
    """Without what only says that workers of these hosts do not answer; of all hosts where nobody could be asked."""
    assert snapshot.broker is not None
    unheard = [host.name for host in fleet.hosts] if snapshot.broker.unasked else hosts
    return [finding for finding in findings if not _only_unheard(fleet, finding, unheard)]


def _only_unheard(fleet: Fleet, finding: Finding, hosts: Collection[str]) -> bool:
    """Whether it only says that workers of these hosts do not answer, with a remedy that would not help there."""
    if finding.code == "worker.not_answering":
        return finding.subject.rpartition("@")[2] in hosts
    if finding.code != "queue.no_consumer":
        return False
    consuming = {h.name for h in fleet.hosts for worker in h.settings.workers if finding.subject in worker.queues}
    return bool(consuming) and consuming <= set(hosts)


def watch(fleet: Fleet, snapshot: Snapshot) -> tuple[Finding, ...]:
    """What of it shows without asking more hosts than those of beat: the monitor's faults, errors first. Pure."""
    asked = [host for host in fleet.hosts if host.name in snapshot.hosts]
    findings = [
        *broker.findings(fleet, snapshot),
        *code.unregistered(fleet, snapshot),
        *code.discarding(fleet, snapshot),
        *workers.silent_nodes(fleet, snapshot),
        *workers.strangers(fleet, snapshot),
        *queues.findings(fleet, snapshot),
        *(finding for host in asked for finding in workers.of_beat(fleet, host, snapshot.hosts[host.name])),
    ]
    faults = [one for one in _heard(fleet, snapshot, findings, ()) if one.severity is not Severity.INFO]
    return tuple(sorted(faults, key=lambda finding: _ORDER.index(finding.severity)))
