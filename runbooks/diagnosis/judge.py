"""The one judgement: a snapshot's findings, each with the evidence for it and the changes that fix it.

A plan is the changes of findings; `diagnose`, `verify`, the proof and the monitor are views of the same findings.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from runbooks.core.effects import Change
from runbooks.core.fleet import Fleet
from runbooks.core.model import Block, Finding, Severity, Snapshot
from runbooks.diagnosis import broker, code, environment, files, lockout, probes, queues, services, workers
from runbooks.diagnosis.wanted_files import Kind, Wanted

_ORDER = list(Severity)
_UNHEARD = ("worker.no_remote_control", "broker.not_the_workers", "broker.options_differ")
"""Why workers do not answer what they are asked, though they may be well: where it blocks, restarting mends nothing."""


def judge(fleet: Fleet, snapshot: Snapshot, wanted: Mapping[Kind, Wanted]) -> tuple[Finding, ...]:
    """Every fault of the fleet, errors first. Pure: all it knows is a snapshot of everything.

    What another fault explains is left out, and the fault that explains it has its changes.
    """
    files_ = [*environment.faults(fleet, snapshot), *files.faults(fleet, snapshot, wanted)]
    on_files = list(services.with_restarts(fleet, snapshot, files_))
    at_work = [*services.faults(fleet, snapshot), *code.not_registered(fleet, snapshot)]
    known = [*on_files, *at_work]
    findings = [
        *broker.faults(fleet, snapshot),
        *code.faults(fleet, snapshot, known),
        *lockout.faults(fleet, snapshot, known),
        *workers.faults(fleet, snapshot),
        *at_work,
        *queues.faults(fleet, snapshot, known),
        *probes.faults(fleet, snapshot),
        *on_files,
    ]
    unloaded = ("task.import_fails", "host.probe_failed")
    explained = {finding.subject for finding in findings if finding.code in unloaded and finding.fix}
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
        *broker.faults(fleet, snapshot),
        *code.unregistered(fleet, snapshot),
        *code.discarding(fleet, snapshot),
        *workers.silent_nodes(fleet, snapshot),
        *workers.strangers(fleet, snapshot),
        *queues.faults(fleet, snapshot),
        *(finding for host in asked for finding in workers.of_beat(fleet, host, snapshot.hosts[host.name])),
    ]
    faults = [one for one in _heard(fleet, snapshot, findings, ()) if one.severity is not Severity.INFO]
    return tuple(sorted(faults, key=lambda finding: _ORDER.index(finding.severity)))


def can_be_fixed(findings: Iterable[Finding]) -> bool:
    """Whether a remediation would have something to do: a change that nothing blocks."""
    findings = list(findings)
    blocks = [block for finding in findings for block in finding.blocks]
    return any(is_free(change, blocks) for finding in findings for change in finding.fix)


def is_free(change: Change, blocks: Iterable[Block]) -> bool:
    """Whether no block covers a change."""
    return not any(block.covers(change.host, change.service) for block in blocks)
