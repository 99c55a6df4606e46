"""The one judgement: the findings of a snapshot, with the evidence and the changes that fix them.

A plan is the changes of findings; `diagnose`, `verify`, the verification after a run and the
monitor are views of the same findings.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from runbooks.core.effects import Change
from runbooks.core.fleet import Fleet
from runbooks.core.model import Block, Finding, Severity, Snapshot
from runbooks.diagnosis import (
    application,
    broker,
    code,
    containers,
    cron,
    environment,
    files,
    lockout,
    logged,
    older_code,
    probes,
    program_stops,
    queues,
    schedule,
    services,
    stuck,
    workers,
)
from runbooks.diagnosis.accepted import unmatched, with_accepted
from runbooks.diagnosis.causes import causes_first
from runbooks.diagnosis.other_run import without_its_doing
from runbooks.diagnosis.possible import possible
from runbooks.diagnosis.wanted_files import Kind, Wanted

_UNHEARD = ("worker.no_remote_control", "broker.not_the_workers", "broker.options_differ")
"""Why healthy workers may not answer: if one of these blocks, a restart does not help."""

_SAYS_WHY = ("worker.named_otherwise", "worker.other_broker", "worker.stopped", "beat.stopped")
_NO_ANSWER = ("worker.busy", "worker.node_unclear", "worker.not_answering", "worker.other_process")
"""Findings of a worker's silence, which is left out if one of `_SAYS_WHY` explains it."""

_SILENT = (
    "worker.not_answering",
    "worker.busy",
    "worker.none_fits",
    "queue.no_consumer",
    "queue.few_consumers",
)
"""Findings that are made if nodes do not answer."""

_UNLOADED = ("task.import_fails", "host.probe_failed")
"""Findings whose fix sets the environment, which is then not a finding of its own."""


def judge(
    fleet: Fleet, snapshot: Snapshot, wanted: Mapping[Kind, Wanted], *, taking: bool = False
) -> tuple[Finding, ...]:
    """Return every fault of the fleet, causes and errors first, from a snapshot of everything.

    A fault that another one explains is left out; the other one has its changes. What another run
    is doing now is not a fault. `taking`: what others have started will be taken over.
    """
    files_ = [
        *environment.faults(fleet, snapshot),
        *files.faults(fleet, snapshot, wanted, taking=taking),
    ]
    planned = [change for fault in files_ for change in fault.fix]
    files_ += files.may_not_be_written(snapshot, planned)
    on_files = list(services.with_restarts(fleet, snapshot, files_))
    at_work = [*services.faults(fleet, snapshot), *code.not_registered(fleet, snapshot)]
    known = [*on_files, *at_work]
    of_services = [fault for fault in known if fault.code != "task.not_registered"]
    findings = [
        *application.faults(fleet, snapshot, known),
        *broker.faults(fleet, snapshot),
        *code.faults(fleet, snapshot, known),
        *lockout.faults(fleet, snapshot, known),
        *workers.faults(fleet, snapshot),
        *containers.faults(fleet, snapshot),
        *program_stops.faults(fleet, snapshot),
        *at_work,
        *older_code.workers(fleet, snapshot, of_services),
        *older_code.beats(fleet, snapshot),
        *schedule.faults(fleet, snapshot),
        *queues.faults(fleet, snapshot, known),
        *stuck.faults(fleet, snapshot),
        *logged.faults(fleet, snapshot),
        *probes.faults(fleet, snapshot),
        *cron.faults(fleet, snapshot),
        *on_files,
    ]
    findings = list(_explained(fleet, _without_environments(findings)))
    unheard = set[str]()
    for finding in findings:
        if finding.code in _UNHEARD:
            unheard.update(block.host for block in finding.blocks)
    findings = list(without_its_doing(fleet, snapshot, _heard(fleet, snapshot, findings, unheard)))
    reported = with_accepted(fleet, possible(fleet, findings), snapshot.at)
    return causes_first(fleet, snapshot, [*reported, *unmatched(fleet, reported)])


def _without_environments(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings without the environments that the fix of another finding sets."""
    set_by_others = {one.subject for one in findings if one.code in _UNLOADED and one.fix}
    left = []
    for finding in findings:
        if finding.code != "environment.differs" or finding.subject not in set_by_others:
            left.append(finding)
    return left


def _explained(fleet: Fleet, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings without a worker's silence that another one explains.

    The other one gets its changes.
    """
    nodes = {}
    for host in fleet.hosts:
        for service in host.services:
            if len(host.workers_of(service)) == 1:
                nodes[f"{service} on {host.name}"] = host.node_of(service)

    def node_of(finding: Finding) -> str:
        return nodes.get(finding.subject, finding.subject)

    why = {node_of(finding) for finding in findings if finding.code in _SAYS_WHY}
    silent = {}
    for finding in findings:
        if finding.code in _NO_ANSWER and node_of(finding) in why:
            silent[node_of(finding)] = finding
    for finding in findings:
        its = silent.get(node_of(finding))
        if its and finding.code in _SAYS_WHY:
            if not finding.blocks:
                finding = replace(finding, remedy=its.remedy, fix=its.fix)
            yield finding
        elif finding not in silent.values():
            yield finding


def _heard(
    fleet: Fleet, snapshot: Snapshot, findings: Sequence[Finding], hosts: Collection[str]
) -> list[Finding]:
    """Return the findings without those that only say that workers of these hosts do not answer.

    If no node could be asked, this applies to all workers.
    """
    assert snapshot.broker is not None
    if snapshot.broker.unasked:
        return [finding for finding in findings if finding.code not in _SILENT]
    return [finding for finding in findings if not _only_unheard(fleet, finding, hosts)]


def _only_unheard(fleet: Fleet, finding: Finding, hosts: Collection[str]) -> bool:
    """Return whether it only says that workers of these hosts do not answer."""
    if finding.code == "worker.not_answering":
        return finding.subject.rpartition("@")[2] in hosts
    if finding.code != "queue.no_consumer":
        return False
    consuming = set()
    for host in fleet.hosts:
        if any(finding.subject in worker.queues for worker in host.settings.workers):
            consuming.add(host.name)
    return bool(consuming) and consuming <= set(hosts)


def watch(fleet: Fleet, snapshot: Snapshot, besides: Iterable[Finding] = ()) -> tuple[Finding, ...]:
    """Return the monitor's faults, causes and errors first: they need only the hosts of beat.

    `besides` are faults that only earlier looks show.
    """
    of_beats = list[Finding]()
    for host in fleet.hosts:
        if host.name in snapshot.hosts:
            of_beats += workers.of_beat(fleet, host, snapshot.hosts[host.name])
    findings = [
        *broker.faults(fleet, snapshot),
        *code.unregistered(fleet, snapshot),
        *code.discarding(fleet, snapshot),
        *workers.none_expected(fleet),
        *workers.not_there(fleet, snapshot),
        *workers.silent_nodes(fleet, snapshot),
        *workers.strangers(fleet, snapshot),
        *queues.faults(fleet, snapshot),
        *stuck.faults(fleet, snapshot),
        *of_beats,
        *besides,
    ]
    heard = _heard(fleet, snapshot, findings, ())
    left = possible(fleet, without_its_doing(fleet, snapshot, heard))
    judged = with_accepted(fleet, left, snapshot.at)
    faults = [finding for finding in judged if finding.severity is not Severity.INFO]
    return causes_first(fleet, snapshot, faults)


def can_be_fixed(findings: Iterable[Finding]) -> bool:
    """Return whether a remediation would have something to do: a change that is not blocked."""
    findings = list(findings)
    blocks = [block for finding in findings for block in finding.blocks]
    return any(is_free(change, blocks) for finding in findings for change in finding.fix)


def is_free(change: Change, blocks: Iterable[Block]) -> bool:
    """Return whether no block covers a change."""
    services = change.services or ("",)
    return not any(block.covers(change.host, service) for block in blocks for service in services)
