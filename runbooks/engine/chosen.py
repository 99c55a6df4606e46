"""Single workers that the command line names: what of a fleet and its findings is theirs, and steps
that change nothing else.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from msgspec.structs import replace

from runbooks.core.application import ScheduleEntry
from runbooks.core.effects import Change
from runbooks.core.errors import UsageError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, HostState, NodeState, Snapshot, Unreachable
from runbooks.core.rules import fits
from runbooks.core.wording import did_you_mean
from runbooks.diagnosis.step import Step

Services = frozenset[tuple[str, str]]
"""Services, each after its host."""


def chosen(fleet: Fleet, patterns: str | None) -> Services:
    """The workers and beats that one of these patterns fits, which commas separate; all of them for
    None.

    A pattern is the shell's, for a name in the inventory, `NAME@HOST`, or the unit or service.
    Raises UsageError where one fits nothing.
    """
    names = {
        (host.name, service): tuple(_names(host, service))
        for host in fleet.hosts
        for service in host.services
    }
    if patterns is None:
        return frozenset(names)
    found = set[tuple[str, str]]()
    for pattern in (one.strip() for one in patterns.split(",")):
        fitting = {
            service
            for service, own in names.items()
            if any(fnmatchcase(name, pattern) for name in own)
        }
        if not fitting:
            known = list(dict.fromkeys(name for own in names.values() for name in own))
            called = (
                name
                for host in fleet.hosts
                for service in host.services
                for name in _called(host, service)
            )
            there = ", ".join(dict.fromkeys(called)) or "none"
            raise UsageError(
                "no worker or beat of these hosts is called"
                f" {pattern!r}{did_you_mean(pattern, known)}",
                f"there are: {there}",
            )
        found |= fitting
    return frozenset(found | _together_with(fleet, found))


def _together_with(fleet: Fleet, services: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that are started and stopped only together with one of these."""
    hosts = [
        host
        for host in fleet.hosts
        if any((host.name, service) in services for service in host.together)
    ]
    return {(host.name, service) for host in hosts for service in host.together}


def _names(host: FleetHost, service: str) -> Iterator[str]:
    for name in _called(host, service):
        yield from (name, f"{name}@{host.name}")
    yield service


def _called(host: FleetHost, service: str) -> list[str]:
    """What the inventory calls the workers of a service, or beat."""
    return [worker.name for worker in host.workers_of(service)] or ["beat"]


def chosen_nodes(
    nodes: Mapping[str, NodeState], listening: Collection[str], patterns: str
) -> tuple[dict[str, NodeState], list[str]]:
    """Of the nodes that answer, by their names here, those that one of these patterns fits; commas
    separate patterns.

    Also those that are bound to remote control (`listening`), fit, and do not answer. Raises
    UsageError where a pattern fits nothing.
    """
    answering = {node.name for node in nodes.values()}
    silent = sorted(name for name in listening if name not in answering)
    known = list(dict.fromkeys([*nodes, *sorted(answering), *silent]))
    for pattern in (one.strip() for one in patterns.split(",")):
        if not any(fits(pattern, name) for name in known):
            there = f"there are: {', '.join(known)}" if known else "none answers"
            raise UsageError(f"no node is called {pattern!r}{did_you_mean(pattern, known)}", there)
    wanted = ",".join(one.strip() for one in patterns.split(","))
    meant = {
        label: node
        for label, node in nodes.items()
        if fits(wanted, label) or fits(wanted, node.name)
    }
    return meant, [name for name in silent if fits(wanted, name)]


def only(steps: Iterable[Step], services: Services) -> Sequence[Step]:
    """The steps, without what they would change of other services."""
    return [_Only(step, services) for step in steps]


def about(findings: Iterable[Finding], services: Services) -> list[Finding]:
    """The findings that keep one of these services from being touched, with no more than that."""
    return [
        finding for finding in findings if any(_covers(block, services) for block in finding.blocks)
    ]


def of_these(fleet: Fleet, findings: Iterable[Finding], services: Services) -> list[Finding]:
    """The findings without those about other services, hosts or queues alone; what may matter to
    these stays.
    """
    others = frozenset(_subjects(fleet, services, chosen=False)) - frozenset(
        _subjects(fleet, services, chosen=True)
    )
    away = {host.name for host in fleet.hosts} - {host for host, _ in services}

    def is_of_others(finding: Finding) -> bool:
        if any((change.host, change.service) in services for change in finding.fix) or about(
            [finding], services
        ):
            return False
        return finding.subject in others | away or finding.subject.rpartition(" on ")[2] in away

    return [finding for finding in findings if not is_of_others(finding)]


def _subjects(fleet: Fleet, services: Services, *, chosen: bool) -> Iterator[str]:
    """What findings call the services that are, or are not, among these: by name, by node, and by
    their queues.
    """
    for host in fleet.hosts:
        for service in host.services:
            if ((host.name, service) in services) is chosen:
                yield f"{service} on {host.name}"
                for worker in host.workers_of(service):
                    yield from (host.node(worker), f"{worker.name} on {host.name}", *worker.queues)


def part(fleet: Fleet, snapshot: Snapshot, services: Services) -> tuple[Fleet, Snapshot]:
    """The fleet and what was seen of it, with these services alone, and their hosts.

    Without beat among them only those entries of the schedule remain that go to their queues.
    """
    hosts = tuple(
        _with_only(host, services)
        for host in fleet.hosts
        if any(name == host.name for name, _ in services)
    )
    states = {host.name: snapshot.hosts[host.name] for host in hosts if host.name in snapshot.hosts}
    if not any(host.settings.beat for host in hosts):
        queues = {
            queue for host in hosts for worker in host.settings.workers for queue in worker.queues
        }
        states = {name: _sending_to(queues, state) for name, state in states.items()}
    app = fleet.app.model_copy(update={"nodes": (), "queues": {}})
    return replace(fleet, app=app, hosts=hosts), replace(snapshot, hosts=states)


def _sending_to(queues: Collection[str], state: HostState | Unreachable) -> HostState | Unreachable:
    """The state of a host, without the entries of the schedule that go to other queues."""
    if isinstance(state, Unreachable):
        return state

    def goes_there(entry: ScheduleEntry) -> bool:
        return entry.route is not None and entry.route.queue in queues

    said, kept = state.application, state.kept
    return replace(
        state,
        application=said and replace(said, schedule=tuple(filter(goes_there, said.schedule))),
        kept=kept
        and replace(kept, entries=tuple(one for one in kept.entries if goes_there(one.entry))),
    )


def _with_only(host: FleetHost, services: Services) -> FleetHost:
    workers = tuple(one for one in host.settings.workers if (host.name, one.known_as) in services)
    beat = host.settings.beat and (host.name, host.beat) in services
    return replace(
        host, settings=host.settings.model_copy(update={"workers": workers, "beat": beat})
    )


def _covers(block: Block, services: Services) -> bool:
    return any(block.covers(host, service) for host, service in services)


class _Only:
    """A step that changes these services alone; in every look, so that nothing waits for what is
    not made.
    """

    def __init__(self, step: Step, services: Collection[tuple[str, str]]) -> None:
        self.name, self.needs, self.rolling, self.patience_s = (
            step.name,
            step.needs,
            step.rolling,
            step.patience_s,
        )
        self.puts_back = step.puts_back
        self._step, self._services = step, services

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """Those of the step."""
        return self._step.findings(snapshot)

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """The changes still missing of these services."""
        return self._own(self._step.plan(snapshot))

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Of these, those that are missing after they were made."""
        return self._own(self._step.lacking(snapshot))

    def _own(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(
            c for c in changes if any((c.host, service) in self._services for service in c.services)
        )
