"""`inv verify`: test every expectation of the inventory, and show what was seen of each."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from runbooks.core.errors import ExitCode
from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, Finding, Severity, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.nodes import fits
from runbooks.core.reporter import Check
from runbooks.core.rules import duration
from runbooks.core.settings import Worker
from runbooks.core.wording import counted
from runbooks.diagnosis.expected import expected_by
from runbooks.diagnosis.schedule import Path as Way
from runbooks.diagnosis.schedule import paths
from runbooks.diagnosis.silence import busy_solo
from runbooks.engine.chosen import chosen, part
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap
from runbooks.pages.files import require_place, write_whole
from runbooks.reports.junit import junit

_NO_NODE = ("worker.not_answering", "worker.not_running", "worker.stopped")
_EXCUSED_BY = {
    "hosts": ("host.",),
    "nodes": _NO_NODE,
    "registered": (*_NO_NODE, "task.not_registered"),
    "queues": ("queue.no_consumer", "queue.few_consumers"),
    "services": ("worker.not_running", "beat.not_running", "service.runs_elsewhere"),
    "schedule": ("schedule.",),
    "probes": ("probe.failed",),
}
"""The codes, or their beginnings, that report the same fault as a check. If such a finding is
accepted, the check does not expect anything of its subject.
"""

_OF_NO_ONE: Mapping[str, str] = MappingProxyType({})


def verify(
    session: Session, patterns: str | None = None, *, budget: str, file: Path | None = None
) -> ExitCode:
    """Return 1 if an expectation does not hold, 4 if a host or the broker does not answer.

    With `patterns` the whole fleet is checked, but only what is expected of the workers and beats
    that match is tested. Messages are read for the duration of the `budget`, then a sample of the
    rest. The results are also written to the `file`, in JUnit format.
    """
    if file:
        require_place("--junit", file)
    services = None
    if patterns is not None:
        services = chosen(session.fleet, patterns)
    needs = Needs.EVERYTHING | Needs.PROBES | Needs.SCHEDULE
    read_until = time.monotonic() + duration("--budget", budget)
    snapshot = session.observe(needs, read_until=read_until, without_broker=True)
    findings = session.diagnose(snapshot, conclusive=False, services=services)
    fleet, seen = session.fleet, snapshot
    if services is not None:
        fleet, seen = part(session.fleet, snapshot, services)
    checks = list(expectations(fleet, seen, findings))
    session.reporter.checks(checks)
    if file:
        write_whole(file, junit(session.fleet.app.app, checks, snapshot.at))
        session.reporter.message(f"Wrote {file}.")
    unreachable = start_recap(session, snapshot).exit_code
    if unreachable:
        return unreachable
    if all(check.ok for check in checks):
        return ExitCode.OK
    return ExitCode.FINDINGS


def expectations(fleet: Fleet, snapshot: Snapshot, findings: Sequence[Finding]) -> Iterator[Check]:
    """Yield each expectation of the inventory with what was seen."""
    broker = snapshot.broker
    assert broker is not None
    accepted = _accepted(fleet, findings)
    if fleet.hosts:
        answering = list(snapshot.reachable())
        hosts = [host.name for host in fleet.hosts]
        yield _count("hosts answer", answering, hosts, accepted=accepted["hosts"])
    unasked = ""
    if broker.unasked:
        unasked = f"not checked (broker.{broker.unasked.trouble.value})"
    restarting = ""
    restarts: Collection[tuple[str, str]] = ()
    if run := snapshot.other_run:
        restarting = f"run {run.id} is restarting"
        restarts = run.restarts or ()
    restarted = dict.fromkeys(fleet.nodes_of(restarts), restarting)
    for check in _of_nodes(fleet, snapshot, broker, restarted, accepted):
        if unasked:
            yield Check(check.what, None, unasked)
        else:
            yield check
    if any(host.services for host in fleet.hosts):
        unknown = {f"{service} on {host}": restarting for host, service in restarts}
        yield _services(fleet, snapshot, unknown, accepted["services"])
    unseen = unasked
    if not unseen and restarts:
        unseen = restarting
    yield from _scheduled(fleet, snapshot, unseen, accepted["schedule"])
    yield from _probes(fleet, snapshot, accepted["probes"])
    yield _nothing_left(findings)


def _accepted(fleet: Fleet, findings: Sequence[Finding]) -> dict[str, set[str]]:
    """Return the accepted subjects by check; for a worker both its service and its node."""
    nodes = {
        f"{worker.known_as} on {host.name}": host.node(worker)
        for host in fleet.hosts
        for worker in host.settings.workers
    }
    accepted = {}
    for check, codes in _EXCUSED_BY.items():
        found = [one for one in findings if one.accepted and one.code.startswith(codes)]
        subjects = {subject for one in found for subject in one.subject.split(", ")}
        accepted[check] = subjects | {nodes[subject] for subject in subjects & nodes.keys()}
    return accepted


def _of_nodes(
    fleet: Fleet,
    snapshot: Snapshot,
    broker: BrokerState,
    restarted: Mapping[str, str],
    accepted: Mapping[str, Collection[str]],
) -> Iterator[Check]:
    """Check what nodes report, and whether the broker sees them.

    `restarted` are nodes that need not answer now, each with the reason.
    """
    workers = {
        host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers
    }
    nodes = list(workers)
    answering = [name for name in nodes if name in broker.nodes]
    at_tasks = busy_solo(fleet, snapshot)
    busy = {**dict.fromkeys(at_tasks, "a solo worker does not answer during a task"), **restarted}
    if nodes:
        yield _count("nodes answer ping", answering, nodes, busy, accepted["nodes"])
    others = list(fleet.nodes_by_pattern(broker.nodes))
    if patterns := fleet.app.nodes:
        there = []
        for pattern in patterns:
            if any(fits(node.name, pattern) for node in broker.nodes.values()):
                there.append(pattern)
        yield _count("patterns of nodes are matched", there, list(patterns))
    if nodes or others:
        yield _registered(fleet, snapshot, broker, busy, accepted["registered"])
    if queues := _consumed(fleet, broker, workers):
        perhaps: dict[str, str] = {}
        for name, why in busy.items():
            if name in workers:
                perhaps |= dict.fromkeys(workers[name].queues, why)
        consumed = [queue for queue, is_consumed in queues.items() if is_consumed]
        yield _count("queues are consumed", consumed, list(queues), perhaps, accepted["queues"])
    blocked = broker.blocked_clients
    seen = "CLIENT LIST is not allowed"
    if blocked is not None:
        db = f"of db {broker.db}"
        seen = f"{counted(blocked, f'client {db} waits', f'clients {db} wait')} in BRPOP"
    if nodes or others:
        sees = bool(blocked or answering or others or busy)
        yield Check("the broker sees waiting or working consumers", sees, seen)


def _consumed(fleet: Fleet, broker: BrokerState, workers: Mapping[str, Worker]) -> dict[str, bool]:
    """Return whether each queue has enough consumers.

    Leaves out queues of hosts outside --limit, and those that only a rule names.
    """
    here = {queue for worker in workers.values() for queue in worker.queues}
    expected = {queue: one.consumers for queue, one in fleet.app.queues.items()}
    queues = {}
    for queue in fleet.queues:
        if expected.get(queue, queue in here):
            consuming = [node for node in broker.nodes.values() if queue in node.queues]
            count = sum(node.twins for node in consuming)
            queues[queue] = count >= expected.get(queue, 1)
    return queues


def _registered(
    fleet: Fleet,
    snapshot: Snapshot,
    broker: BrokerState,
    busy: Mapping[str, str],
    accepted: Collection[str],
) -> Check:
    """Check whether nodes register the inventory's tasks, else those that are routed to them."""
    expected = expected_by(fleet, snapshot)
    all_ = frozenset[str]().union(*expected.values())
    if fleet.app.expected_tasks:
        what = f"nodes register all {counted(len(all_), 'expected task')}"
    elif all_:
        what = f"nodes register the tasks of their queues ({len(all_)}, from the routes)"
    else:
        why = fleet.worded("the inventory has no celery_expected_tasks, and ", "")
        why += "no application was loaded"
        return Check("nodes register their tasks", None, f"not known: {why}")
    knowing = []
    for name, own in expected.items():
        if name in broker.nodes and own <= broker.nodes[name].registered:
            knowing.append(name)
    return _count(what, knowing, list(expected), busy, accepted)


def _nothing_left(findings: Sequence[Finding]) -> Check:
    """Check that no fault is left; a warning that no step can fix is shown, but does not fail."""
    faults = []
    warnings = []
    for finding in findings:
        if finding.severity is Severity.ERROR or finding.fix:
            faults.append(finding)
        elif finding.severity is Severity.WARNING:
            warnings.append(finding)
    seen = "no error, and nothing to fix"
    if faults:
        seen = counted(len(faults), "finding")
    if warnings:
        seen += f"; {counted(len(warnings), 'warning')} that remediate cannot fix"
    return Check("no fault is left", not faults, seen)


def _services(
    fleet: Fleet, snapshot: Snapshot, unknown: Mapping[str, str], accepted: Collection[str]
) -> Check:
    states = snapshot.reachable()
    running: list[str] = []
    expected: list[str] = []
    unseen: list[str] = []
    why_unknown = dict(unknown)
    for host in fleet.hosts:
        if host.name not in states:
            if host.services:
                unseen.append(f"{len(host.services)} on {host.name}")
            continue
        for service in host.services:
            name = f"{service} on {host.name}"
            state = states[host.name].services[service]
            expected.append(name)
            if state.why_unknown:
                why_unknown[name] = "not known"
            if state.pid:
                running.append(name)
    check = _count("services run", running, expected, why_unknown, accepted)
    if not unseen:
        return check
    ok = None if check.ok else False
    return Check(check.what, ok, f"{check.seen}; not checked: {', '.join(unseen)}")


def _scheduled(
    fleet: Fleet, snapshot: Snapshot, unseen: str, accepted: Collection[str]
) -> Iterator[Check]:
    """Check the schedule: all entries together, then each.

    `unseen` is why a broken way shows nothing, or "".
    """
    found = []
    for way in paths(fleet, snapshot):
        if way.enabled and way.entry.name not in accepted:
            found.append(way)
    if not found:
        return
    unknown = {}
    whole = []
    for way in found:
        if way.broken and unseen:
            unknown[way.entry.name] = unseen
        elif way.unknown and not way.broken:
            unknown[way.entry.name] = "not known"
        elif not way.broken:
            whole.append(way.entry.name)
    names = [way.entry.name for way in found]
    yield _count("entries of the schedule lead to a worker", whole, names, unknown)
    for way in found:
        ok = None if way.entry.name in unknown else not way.broken
        what = f"entry {way.entry.name} of the schedule"
        yield Check(what, ok, _seen_of(way, unseen), one_of_many=True)


def _seen_of(way: Way, unseen: str) -> str:
    """Describe what is wrong with the way of an entry, or else the way itself."""
    problems = [*way.broken, *way.unknown]
    if way.broken and unseen:
        problems.append(unseen)
    if problems:
        return "; ".join(problems)
    return f"{way.entry.task} to {way.queue}, consumed by {', '.join(way.consumers)}"


def _probes(fleet: Fleet, snapshot: Snapshot, accepted: Collection[str]) -> Iterator[Check]:
    for host in fleet.hosts:
        state = snapshot.hosts[host.name]
        for probe in host.settings.probes:
            name = f"{probe.name} on {host.name}"
            if isinstance(state, Unreachable):
                yield Check(f"probe {name}", None, "not run: the host does not answer")
                continue
            fault = state.probes[probe.name].fault
            if not fault:
                yield Check(f"probe {name}", True, "ended as expected")
            elif name in accepted:
                yield Check(f"probe {name}", True, f"{fault}; accepted")
            else:
                yield Check(f"probe {name}", False, fault)


def _count(
    what: str,
    good: list[str],
    expected: list[str],
    unknown: Mapping[str, str] = _OF_NO_ONE,
    accepted: Collection[str] = (),
) -> Check:
    """Check that all that are `expected` are `good`.

    `unknown` has those whose state is not known, each with the reason. Nothing is expected of those
    that are `accepted`.
    """
    failed = []
    not_known = []
    excused = []
    for name in expected:
        if name in good:
            continue
        if name in accepted:
            excused.append(name)
        elif name in unknown:
            not_known.append(name)
        else:
            failed.append(name)
    seen = f"{len(good)} of {len(expected) - len(excused)}"
    if failed:
        seen += f"; not {', '.join(failed)}"
    if excused:
        seen += f"; accepted: {', '.join(excused)}"
    for why in dict.fromkeys(unknown[name] for name in not_known):
        names = [name for name in not_known if unknown[name] == why]
        seen += f"; {why}: {', '.join(names)}"
    if failed:
        return Check(what, False, seen)
    return Check(what, None if not_known else True, seen)
