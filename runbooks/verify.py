"""`inv verify`: test every expectation of the inventory, and say of each what was seen."""

from collections.abc import Iterator, Sequence

from runbooks.core.errors import ExitCode
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.core.reporter import Check
from runbooks.engine.apply import start_recap
from runbooks.engine.session import Session
from runbooks.steps.step import Needs


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
    nodes = [host.node(worker) for host in fleet.hosts for worker in host.settings.workers]
    answering = [name for name in nodes if name in broker.nodes]
    yield _count("hosts answer", list(snapshot.reachable()), [host.name for host in fleet.hosts])
    yield _count("nodes answer ping", answering, nodes)
    expected = frozenset(fleet.app.expected_tasks)
    knowing = [name for name in answering if expected <= broker.nodes[name].registered]
    yield _count(f"nodes have all {len(expected)} expected tasks registered", knowing, nodes)
    consumed = [queue for queue in fleet.queues if any(queue in node.queues for node in broker.nodes.values())]
    yield _count("queues are consumed", consumed, list(fleet.queues))
    if broker.blocked_clients is not None:
        seen = f"{broker.blocked_clients} clients of db {broker.db} wait in BRPOP"
        yield Check("the broker sees waiting or working consumers", bool(broker.blocked_clients or answering), seen)
    else:
        yield Check("the broker sees waiting or working consumers", bool(answering), "CLIENT LIST is not allowed")
    services = [(host, name) for host in fleet.hosts for name in host.services]
    states = snapshot.reachable()
    running = [name for host, name in services if host.name in states and states[host.name].services[name].pid]
    yield _count("services run", running, [name for _, name in services])
    for host in fleet.hosts:
        for name, result in states[host.name].probes.items() if host.name in states else ():
            yield Check(f"probe {name} on {host.name}", not result.fault, result.fault or "ended as expected")
    faults = [finding for finding in findings if finding.severity is not Severity.INFO]
    yield Check(
        "nothing else is wrong",
        not faults,
        f"{len(faults)} {'finding' if len(faults) == 1 else 'findings'}" if faults else "no finding",
    )


def _count(what: str, good: list[str], wanted: list[str]) -> Check:
    lacking = [name for name in wanted if name not in good]
    seen = f"{len(good)} of {len(wanted)}" + (f"; not {', '.join(lacking)}" if lacking else "")
    return Check(what, not lacking, seen)
