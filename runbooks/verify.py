"""`inv verify`: test every expectation of the inventory, and say of each what was seen."""

from collections.abc import Collection, Iterator, Sequence

from runbooks.core.errors import ExitCode
from runbooks.core.model import Finding, Severity, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.reporter import Check
from runbooks.diagnosis.silence import busy_solo
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap


def verify(session: Session) -> ExitCode:
    """Exit code 1 where an expectation does not hold, 4 where a host does not answer."""
    snapshot = session.observe(Needs.EVERYTHING | Needs.PROBES)
    findings = session.diagnose(snapshot)
    checks = list(expectations(session, snapshot, findings))
    session.reporter.checks(checks)
    unreachable = start_recap(session, snapshot).exit_code
    return unreachable or (ExitCode.OK if all(check.ok for check in checks) else ExitCode.FINDINGS)


def expectations(session: Session, snapshot: Snapshot, findings: Sequence[Finding]) -> Iterator[Check]:
    """What the inventory expects, each with what was seen."""
    broker, fleet = snapshot.broker, session.fleet
    assert broker is not None
    workers = {host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers}
    nodes = list(workers)
    answering = [name for name in nodes if name in broker.nodes]
    busy = busy_solo(fleet, snapshot)
    yield _count("hosts answer", list(snapshot.reachable()), [host.name for host in fleet.hosts])
    yield _count("nodes answer ping", answering, nodes, busy)
    expected = frozenset(fleet.app.expected_tasks)
    knowing = [name for name in answering if expected <= broker.nodes[name].registered]
    yield _count(f"nodes have all {len(expected)} expected tasks registered", knowing, nodes, busy)
    elsewhere = {*fleet.consumed} - {queue for worker in workers.values() for queue in worker.queues}  # outside --limit
    asked = [queue for queue in fleet.queues if queue not in elsewhere]
    consumed = [queue for queue in asked if any(queue in node.queues for node in broker.nodes.values())]
    perhaps = {queue for name in busy for queue in workers[name].queues}
    yield _count("queues are consumed", consumed, asked, perhaps)
    blocked = broker.blocked_clients
    seen = "CLIENT LIST is not allowed" if blocked is None else f"{blocked} clients of db {broker.db} wait in BRPOP"
    yield Check("the broker sees waiting or working consumers", bool(blocked or answering or busy), seen)
    yield _services(session, snapshot)
    yield from _probes(session, snapshot)
    yield _nothing_left(findings)


def _nothing_left(findings: Sequence[Finding]) -> Check:
    """A warning that no step can fix (messages of another application, say) is told, and is no failure."""
    faults = [finding for finding in findings if finding.severity is Severity.ERROR or finding.fix]
    warnings = [finding for finding in findings if finding.severity is Severity.WARNING and not finding.fix]
    seen = _counted(len(faults), "finding") if faults else "no error, and nothing to fix"
    if warnings:
        seen += f"; {_counted(len(warnings), 'warning')} that no step can fix"
    return Check("no fault is left", not faults, seen)


def _counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else f'{what}s'}"


def _services(session: Session, snapshot: Snapshot) -> Check:
    states = snapshot.reachable()
    running, wanted, unseen = list[str](), list[str](), list[str]()
    for host in session.fleet.hosts:
        names = {service: f"{service} on {host.name}" for service in host.services}
        if host.name not in states:
            unseen += [f"{len(names)} on {host.name}"] if names else []
            continue
        wanted += names.values()
        running += [name for service, name in names.items() if states[host.name].services[service].pid]
    check = _count("services run", running, wanted)
    if not unseen:
        return check
    return Check(check.what, None if check.ok else False, f"{check.seen}; not seen: {', '.join(unseen)}")


def _probes(session: Session, snapshot: Snapshot) -> Iterator[Check]:
    for host in session.fleet.hosts:
        state = snapshot.hosts[host.name]
        for probe in host.settings.probes:
            what = f"probe {probe.name} on {host.name}"
            if isinstance(state, Unreachable):
                yield Check(what, None, "not run, the host does not answer")
            else:
                fault = state.probes[probe.name].fault
                yield Check(what, not fault, fault or "ended as expected")


def _count(what: str, good: list[str], wanted: list[str], unknown: Collection[str] = ()) -> Check:
    """How many are as they should be; `unknown` are those of the others of which a busy solo worker does not tell."""
    lacking = [name for name in wanted if name not in good and name not in unknown]
    untold = [name for name in wanted if name not in good and name in unknown]
    seen = f"{len(good)} of {len(wanted)}" + (f"; not {', '.join(lacking)}" if lacking else "")
    seen += f"; a solo worker at its task does not tell: {', '.join(untold)}" if untold else ""
    return Check(what, False if lacking else None if untold else True, seen)
