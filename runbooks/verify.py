"""`inv verify`: test every expectation of the inventory, and say of each what was seen."""

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
from runbooks.core.wording import counted
from runbooks.diagnosis.expected import expected_by
from runbooks.diagnosis.schedule import paths
from runbooks.diagnosis.silence import busy_solo
from runbooks.engine.chosen import chosen, part
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap
from runbooks.pages.files import require_place, write_whole
from runbooks.reports.junit import junit


def verify(
    session: Session, patterns: str | None = None, *, budget: str, file: Path | None = None
) -> ExitCode:
    """Exit code 1 where an expectation does not hold, 4 where a host or the broker does not answer.

    With `patterns` the whole fleet is looked at, and what is expected of the workers and beats that
    one of them fits is tested. Messages are read for the duration of the `budget`, then a sample of
    what is left. What was tested is also written into the `file`, as JUnit has it.
    """
    if file:
        require_place("--junit", file)
    services = chosen(session.fleet, patterns) if patterns is not None else None
    needs = Needs.EVERYTHING | Needs.PROBES | Needs.SCHEDULE
    read_until = time.monotonic() + duration("--budget", budget)
    snapshot = session.observe(needs, read_until=read_until, without_broker=True)
    findings = session.diagnose(snapshot, conclusive=False, services=services)
    asked = (
        (session.fleet, snapshot) if services is None else part(session.fleet, snapshot, services)
    )
    checks = list(expectations(*asked, findings))
    session.reporter.checks(checks)
    if file:
        write_whole(file, junit(session.fleet.app.app, checks, snapshot.at))
        session.reporter.message(f"Wrote {file}.")
    unreachable = start_recap(session, snapshot).exit_code
    return unreachable or (ExitCode.OK if all(check.ok for check in checks) else ExitCode.FINDINGS)


def expectations(fleet: Fleet, snapshot: Snapshot, findings: Sequence[Finding]) -> Iterator[Check]:
    """What the inventory expects, each with what was seen; where it expects nothing there is
    nothing to test.
    """
    broker = snapshot.broker
    assert broker is not None
    accepted = _accepted(fleet, findings)
    if fleet.hosts:
        answering = list(snapshot.reachable())
        yield _count(
            "hosts answer",
            answering,
            [host.name for host in fleet.hosts],
            accepted=accepted["hosts"],
        )
    why = broker.unasked
    run = snapshot.other_run
    restarts = run.restarts or () if run else ()
    restarting = f"run {run.id} is restarting" if run else ""
    unasked = f"could not be asked (broker.{why.trouble.value})" if why else ""
    restarted = dict.fromkeys(fleet.nodes_of(restarts), restarting)
    for check in _of_nodes(fleet, snapshot, broker, restarted, accepted):
        yield Check(check.what, None, unasked) if unasked else check
    if any(host.services for host in fleet.hosts):
        unknown = {f"{service} on {host}": restarting for host, service in restarts}
        yield _services(fleet, snapshot, unknown, accepted["services"])
    yield from _scheduled(
        fleet, snapshot, unasked or (restarting if restarts else ""), accepted["schedule"]
    )
    yield from _probes(fleet, snapshot, accepted["probes"])
    yield _nothing_left(findings)


_EXCUSED_BY = {
    "hosts": ("host.",),
    "nodes": ("worker.not_answering", "worker.not_running", "worker.stopped"),
    "registered": (
        "worker.not_answering",
        "worker.not_running",
        "worker.stopped",
        "task.not_registered",
    ),
    "queues": ("queue.no_consumer", "queue.few_consumers"),
    "services": ("worker.not_running", "beat.not_running", "service.runs_elsewhere"),
    "schedule": ("schedule.",),
    "probes": ("probe.failed",),
}
"""The codes, or how these begin, that say the same as a check: of what is accepted nothing is
expected.
"""


def _accepted(fleet: Fleet, findings: Sequence[Finding]) -> dict[str, set[str]]:
    """What is accepted, by the check that would fail for it; of workers their services and their
    nodes.
    """
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
    """What the nodes say, and whether the broker sees them; why those that are `restarted` just now
    need not answer.
    """
    workers = {
        host.node(worker): worker for host in fleet.hosts for worker in host.settings.workers
    }
    nodes = list(workers)
    answering = [name for name in nodes if name in broker.nodes]
    busy = {
        **dict.fromkeys(busy_solo(fleet, snapshot), "a solo worker at its task does not tell"),
        **restarted,
    }
    if nodes:
        yield _count("nodes answer ping", answering, nodes, busy, accepted["nodes"])
    others = list(fleet.nodes_by_pattern(broker.nodes))
    if patterns := fleet.app.nodes:
        there = [
            one for one in patterns if any(fits(node.name, one) for node in broker.nodes.values())
        ]
        yield _count("patterns of nodes are met", there, list(patterns))
    if nodes or others:
        yield _registered(fleet, snapshot, broker, busy, accepted["registered"])
    elsewhere = {*fleet.consumed} - {
        queue for worker in workers.values() for queue in worker.queues
    }  # outside --limit
    wanted = {queue: one.consumers for queue, one in fleet.app.queues.items()}
    asked = [queue for queue in fleet.queues if wanted.get(queue, queue not in elsewhere)]
    counts = {
        queue: sum(node.twins for node in broker.nodes.values() if queue in node.queues)
        for queue in asked
    }
    consumed = [queue for queue in asked if counts[queue] >= wanted.get(queue, 1)]
    perhaps = {
        queue: why
        for name, why in busy.items()
        if name in workers
        for queue in workers[name].queues
    }
    if asked:
        yield _count("queues are consumed", consumed, asked, perhaps, accepted["queues"])
    blocked = broker.blocked_clients
    seen = "CLIENT LIST is not allowed"
    if blocked is not None:
        db = f"of db {broker.db}"
        seen = f"{counted(blocked, f'client {db} waits', f'clients {db} wait')} in BRPOP"
    if nodes or others:
        yield Check(
            "the broker sees waiting or working consumers",
            bool(blocked or answering or others or busy),
            seen,
        )


def _registered(
    fleet: Fleet,
    snapshot: Snapshot,
    broker: BrokerState,
    busy: Mapping[str, str],
    accepted: Collection[str],
) -> Check:
    """Whether the nodes know their tasks: those of the inventory, or else those that are routed to
    their queues.
    """
    expected = expected_by(fleet, snapshot)
    all_ = frozenset[str]().union(*expected.values())
    if fleet.app.expected_tasks:
        what = f"nodes have all {counted(len(all_), 'expected task')} registered"
    elif all_:
        what = (
            f"nodes have the tasks of their queues registered ({len(all_)}, by the application's"
            " routes)"
        )
    else:
        why = (
            fleet.worded("the inventory names no celery_expected_tasks, and ", "")
            + "no application told its own"
        )
        return Check("nodes have their tasks registered", None, f"not known: {why}")
    knowing = [
        name
        for name, own in expected.items()
        if name in broker.nodes and own <= broker.nodes[name].registered
    ]
    return _count(what, knowing, list(expected), busy, accepted)


def _nothing_left(findings: Sequence[Finding]) -> Check:
    """A warning that no step can fix (messages of another application, say) is told, and is no
    failure.
    """
    faults = [finding for finding in findings if finding.severity is Severity.ERROR or finding.fix]
    warnings = [
        finding for finding in findings if finding.severity is Severity.WARNING and not finding.fix
    ]
    seen = _counted(len(faults), "finding") if faults else "no error, and nothing to fix"
    if warnings:
        seen += f"; {_counted(len(warnings), 'warning')} that no step can fix"
    return Check("no fault is left", not faults, seen)


def _counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else f'{what}s'}"


def _services(
    fleet: Fleet, snapshot: Snapshot, unknown: Mapping[str, str], accepted: Collection[str]
) -> Check:
    states = snapshot.reachable()
    running, wanted, unseen = list[str](), list[str](), list[str]()
    untold = dict(unknown)
    for host in fleet.hosts:
        names = {service: f"{service} on {host.name}" for service in host.services}
        if host.name not in states:
            unseen += [f"{len(names)} on {host.name}"] if names else []
            continue
        wanted += names.values()
        untold |= {
            names[service]: "not told"
            for service in names
            if states[host.name].services[service].untold
        }
        running += [
            name for service, name in names.items() if states[host.name].services[service].pid
        ]
    check = _count("services run", running, wanted, untold, accepted)
    if not unseen:
        return check
    return Check(
        check.what, None if check.ok else False, f"{check.seen}; not seen: {', '.join(unseen)}"
    )


def _scheduled(
    fleet: Fleet, snapshot: Snapshot, unseen: str, accepted: Collection[str]
) -> Iterator[Check]:
    """The entries of the schedule: their sum, and each of them. `unseen` is why a broken way proves
    nothing, or "".
    """
    found = [
        path for path in paths(fleet, snapshot) if path.enabled and path.entry.name not in accepted
    ]
    if not found:
        return
    unknown = {
        path.entry.name: "not known of" for path in found if path.unknown and not path.broken
    }
    unknown |= {path.entry.name: unseen for path in found if path.broken and unseen}
    names = [path.entry.name for path in found]
    whole = [path.entry.name for path in found if not path.broken and not path.unknown]
    yield _count("entries of the schedule lead to a worker", whole, names, unknown)
    for path in found:
        told = "; ".join(
            (*path.broken, *path.unknown, *([unseen] if path.broken and unseen else []))
        )
        ok = None if path.entry.name in unknown else not path.broken
        way = f"{path.entry.task} to {path.queue}, consumed by {', '.join(path.consumers)}"
        yield Check(f"entry {path.entry.name} of the schedule", ok, told or way, one_of_many=True)


def _probes(fleet: Fleet, snapshot: Snapshot, accepted: Collection[str]) -> Iterator[Check]:
    for host in fleet.hosts:
        state = snapshot.hosts[host.name]
        for probe in host.settings.probes:
            what = f"probe {probe.name} on {host.name}"
            if isinstance(state, Unreachable):
                yield Check(what, None, "not run, the host does not answer")
            else:
                fault = state.probes[probe.name].fault
                excused = f"{probe.name} on {host.name}" in accepted
                yield Check(
                    what,
                    not fault or excused,
                    f"{fault}; accepted" if excused else fault or "ended as expected",
                )


def _count(
    what: str,
    good: list[str],
    wanted: list[str],
    unknown: Mapping[str, str] = MappingProxyType({}),
    accepted: Collection[str] = (),
) -> Check:
    """How many are as they should be; `unknown` are those of the others of which it is not known,
    and why.

    Of those that are `accepted` nothing is expected.
    """
    left_out = [name for name in wanted if name not in good and name in accepted]
    wanted = [name for name in wanted if name not in left_out]
    lacking = [name for name in wanted if name not in good and name not in unknown]
    untold = [name for name in wanted if name not in good and name in unknown]
    seen = f"{len(good)} of {len(wanted)}" + (f"; not {', '.join(lacking)}" if lacking else "")
    seen += f"; accepted: {', '.join(left_out)}" if left_out else ""
    for why in dict.fromkeys(unknown[name] for name in untold):
        seen += f"; {why}: {', '.join(name for name in untold if unknown[name] == why)}"
    return Check(what, False if lacking else None if untold else True, seen)
