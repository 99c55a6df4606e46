"""The one judgement: a snapshot's findings, each with the evidence for it and the changes that fix
it.

A plan is the changes of findings; `diagnose`, `verify`, the proof and the monitor are views of the
same findings.
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
"""Why workers do not answer what they are asked, though they may be well: where it blocks,
restarting mends nothing.
"""


def judge(
    fleet: Fleet, snapshot: Snapshot, wanted: Mapping[Kind, Wanted], *, taking: bool = False
) -> tuple[Finding, ...]:
    """Every fault of the fleet, causes and errors first. Pure: all it knows is a snapshot of
    everything.

    What another fault explains is left out, and the fault that explains it has its changes. What
    another run is doing just now is no fault. `taking`: what others have started is to be taken
    over.
    """
    files_ = [
        *environment.faults(fleet, snapshot),
        *files.faults(fleet, snapshot, wanted, taking=taking),
    ]
    files_ += files.may_not_be_written(
        snapshot, [change for fault in files_ for change in fault.fix]
    )
    on_files = list(services.with_restarts(fleet, snapshot, files_))
    at_work = [*services.faults(fleet, snapshot), *code.not_registered(fleet, snapshot)]
    known = [*on_files, *at_work]
    findings = [
        *application.faults(fleet, snapshot, known),
        *broker.faults(fleet, snapshot),
        *code.faults(fleet, snapshot, known),
        *lockout.faults(fleet, snapshot, known),
        *workers.faults(fleet, snapshot),
        *containers.faults(fleet, snapshot),
        *program_stops.faults(fleet, snapshot),
        *at_work,
        *older_code.workers(
            fleet, snapshot, [fault for fault in known if fault.code != "task.not_registered"]
        ),
        *older_code.beats(fleet, snapshot),
        *schedule.faults(fleet, snapshot),
        *queues.faults(fleet, snapshot, known),
        *stuck.faults(fleet, snapshot),
        *logged.faults(fleet, snapshot),
        *probes.faults(fleet, snapshot),
        *cron.faults(fleet, snapshot),
        *on_files,
    ]
    unloaded = ("task.import_fails", "host.probe_failed")
    explained = {
        finding.subject for finding in findings if finding.code in unloaded and finding.fix
    }
    findings = [
        f for f in findings if not (f.code == "environment.differs" and f.subject in explained)
    ]
    findings = list(_explained(fleet, findings))
    unheard = {
        block.host for finding in findings if finding.code in _UNHEARD for block in finding.blocks
    }
    findings = list(without_its_doing(fleet, snapshot, _heard(fleet, snapshot, findings, unheard)))
    told = with_accepted(fleet, possible(fleet, findings), snapshot.at)
    return causes_first(fleet, snapshot, [*told, *unmatched(fleet, told)])


def _explained(fleet: Fleet, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Without the silence of workers of which it is known why; its changes are those of the fault
    that says so.
    """
    nodes = {
        f"{service} on {host.name}": host.node_of(service)
        for host in fleet.hosts
        for service in host.services
        if len(host.workers_of(service)) == 1
    }

    def node_of(finding: Finding) -> str:
        return nodes.get(finding.subject, finding.subject)

    why = {node_of(finding) for finding in findings if finding.code in _SAYS_WHY}
    silent = {
        node_of(finding): finding
        for finding in findings
        if finding.code in _NO_ANSWER and node_of(finding) in why
    }
    for finding in findings:
        if finding.code in _SAYS_WHY and (its := silent.get(node_of(finding))):
            yield finding if finding.blocks else replace(finding, remedy=its.remedy, fix=its.fix)
        elif finding not in silent.values():
            yield finding


_SAYS_WHY = ("worker.named_otherwise", "worker.other_broker", "worker.stopped", "beat.stopped")
_NO_ANSWER = ("worker.busy", "worker.node_unclear", "worker.not_answering", "worker.other_process")


def _heard(
    fleet: Fleet, snapshot: Snapshot, findings: Sequence[Finding], hosts: Collection[str]
) -> list[Finding]:
    """Without what only says that workers of these hosts do not answer; of all workers where nobody
    could be asked.
    """
    assert snapshot.broker is not None
    if snapshot.broker.unasked:
        return [finding for finding in findings if finding.code not in _SILENT]
    return [finding for finding in findings if not _only_unheard(fleet, finding, hosts)]


_SILENT = (
    "worker.not_answering",
    "worker.busy",
    "worker.none_fits",
    "queue.no_consumer",
    "queue.few_consumers",
)
"""What is found where nodes are asked and do not answer."""


def _only_unheard(fleet: Fleet, finding: Finding, hosts: Collection[str]) -> bool:
    """Whether it only says that workers of these hosts do not answer, with a remedy that would not
    help there.
    """
    if finding.code == "worker.not_answering":
        return finding.subject.rpartition("@")[2] in hosts
    if finding.code != "queue.no_consumer":
        return False
    consuming = {
        h.name
        for h in fleet.hosts
        for worker in h.settings.workers
        if finding.subject in worker.queues
    }
    return bool(consuming) and consuming <= set(hosts)


def watch(fleet: Fleet, snapshot: Snapshot, besides: Iterable[Finding] = ()) -> tuple[Finding, ...]:
    """What of it shows without asking more hosts than those of beat: the monitor's faults, causes
    and errors first.

    `besides` is what only earlier looks show.
    """
    asked = [host for host in fleet.hosts if host.name in snapshot.hosts]
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
        *(
            finding
            for host in asked
            for finding in workers.of_beat(fleet, host, snapshot.hosts[host.name])
        ),
        *besides,
    ]
    findings = list(
        possible(fleet, without_its_doing(fleet, snapshot, _heard(fleet, snapshot, findings, ())))
    )
    faults = [
        one
        for one in with_accepted(fleet, findings, snapshot.at)
        if one.severity is not Severity.INFO
    ]
    return causes_first(fleet, snapshot, faults)


def can_be_fixed(findings: Iterable[Finding]) -> bool:
    """Whether a remediation would have something to do: a change that nothing blocks."""
    findings = list(findings)
    blocks = [block for finding in findings for block in finding.blocks]
    return any(is_free(change, blocks) for finding in findings for change in finding.fix)


def is_free(change: Change, blocks: Iterable[Block]) -> bool:
    """Whether no block covers a change."""
    services = change.services or ("",)
    return not any(block.covers(change.host, service) for block in blocks for service in services)
